"""The commands that look at messages and move them, run on a store in memory."""

from __future__ import annotations

import json

import msgspec
import pytest

from shell import MemoryShell
from tidings import claims
from tidings.engine import Dead, Done, Failure, Outgoing
from tidings.engines.memory import MemoryEngine
from tidings.message import new_id

TRACEBACK = "Traceback (most recent call last):\nValueError: too long"
EVIL = "\x1b]0;owned\x07"


class Shell(MemoryShell):
    def declare(self, *groups: str, filter: str = "events.a") -> None:
        wishes = [claims.Wish(group, (filter,)) for group in groups]
        self.play(lambda engine: claims.declare(engine, wishes, lease=30.0))

    def publish(self, *bodies: bytes, subject: str = "events.a") -> None:
        messages = [Outgoing(subject, body, {}, new_id()) for body in bodies]
        self.play(lambda engine: engine.publish(messages))

    def bury(
        self, group: str, count: int = 1, error: str = "ValueError", body: bytes = b"{}", traceback: str = TRACEBACK
    ) -> None:
        """Publish and let it die in the group."""
        self.publish(*[body] * count)

        async def die(engine: MemoryEngine) -> None:
            failure = Failure(error, "too long", traceback, "app.save", "host", "1")
            await engine.settle([Dead(d, "handler_error", failure) for d in await engine.pull(group, count, 0)])

        self.play(die)


@pytest.fixture
def shell() -> Shell:
    return Shell()


def test_pub_stores_an_event_and_says_where(shell: Shell) -> None:
    """An event's place in the log is what stdout says, and its body is the JSON that was typed."""
    assert shell("pub", "events.a", '{"n": 1}').stdout == "stored seq 1\n"
    entry = shell.play(lambda engine: engine.read(["events.a"], 0, 1))[0]
    assert json.loads(entry.body) == {"n": 1}
    assert entry.headers["ce-type"] == "events.a"


def test_pub_tells_of_an_event_that_nobody_wants(shell: Shell) -> None:
    """It says how to see it; nothing where a group or a push stream has the subject; that its group is gone where it
    was removed."""
    alone = shell("pub", "events.a", "1", "--count", "3")
    assert alone.stdout.splitlines() == ["stored seq 1", "stored seq 2", "stored seq 3"]
    assert alone.stderr.count("no group wants events.a: it waits as unclaimed") == 1
    assert "tidings dlq unclaimed" in alone.stderr
    assert shell("dlq", "unclaimed").stdout.splitlines()[1].startswith("events.a")
    shell.declare("save")
    assert shell("pub", "events.a", "1").stderr == ""
    assert json.loads(shell("pub", "events.a", "1", "--json").stdout)["groups"] == ["save"]
    assert "no group wants events.b:" in shell("pub", "events.b", "1", "--json").stderr
    shell.play(lambda engine: claims.declare(engine, [], lease=30.0, readers={"push": ("events.b",)}))
    assert shell("pub", "events.b", "1").stderr == ""
    shell("groups", "rm", "save", "--yes", "--discard-pending")
    assert "any more, and nobody will handle this: save was removed" in shell("pub", "events.a", "1").stderr


def test_pub_stores_one_id_once(shell: Shell) -> None:
    """The same id on the same subject is told to be there already."""
    shell("pub", "events.a", "1", "--id", "x")
    assert shell("pub", "events.a", "1", "--id", "x").stdout == "already stored seq 1: nothing new\n"


def test_pub_sends_words_as_a_json_text_and_says_so(shell: Shell) -> None:
    """Plain words are valid as an event's body, but nobody is left to believe that they went as they are."""
    result = shell("pub", "events.a", "hello world")
    assert result.stdout == "stored seq 1\n"
    assert 'sent as the JSON text "hello world"' in result.stderr
    assert shell.play(lambda engine: engine.read([">"], 0, 1))[0].body == b'"hello world"'


def test_pub_refuses_a_slip_of_json(shell: Shell) -> None:
    """What begins like an object and is none is refused before anything is stored."""
    result = shell("pub", "events.a", '{"item": x}')
    assert result.exit_code == 2
    assert "is not JSON" in result.stderr
    assert shell.json("stats")["messages"] == 0


def test_pub_outside_the_roots_is_live(shell: Shell) -> None:
    """A channel takes any text, stores nothing, and it is told that nobody heard."""
    result = shell("pub", "channel21", "ping", "--count", "2")
    assert result.exit_code == 5
    assert result.stdout == "0 receivers: nobody listening\n" * 2
    assert "not stored" in result.stderr
    assert "begins with events." in result.stderr
    assert shell.json("stats")["messages"] == 0


def test_pub_refuses_what_only_events_have_on_channels(shell: Shell) -> None:
    """An id on a live channel would promise something that nobody keeps."""
    result = shell("pub", "channel21", "ping", "--id", "x")
    assert result.exit_code == 2
    assert "--id is for stored events" in result.stderr


def test_pub_counts(shell: Shell) -> None:
    """`--count` stores as many, each under an id of its own."""
    assert shell("pub", "events.a", "--count", "3").stdout == "stored seq 1\nstored seq 2\nstored seq 3\n"


def test_pub_reads_stdin(shell: Shell) -> None:
    """A dash stands for stdin."""
    shell("pub", "events.a", "-", input='{"from": "stdin"}')
    assert json.loads(shell.play(lambda engine: engine.read([">"], 0, 1))[0].body) == {"from": "stdin"}


def test_a_bad_subject_is_wrong_usage(shell: Shell) -> None:
    """The sentence names the subject and there is no traceback."""
    result = shell("pub", "events..a", "1")
    assert result.exit_code == 2
    assert "'events..a' is not a subject" in result.stderr
    assert "Traceback" not in result.stderr


def test_tail_prints_what_is_stored(shell: Shell) -> None:
    """From a position on, filtered, with the position and the body of each."""
    shell.publish(b'{"n":1}', b'{"n":2}', b'{"n":3}')
    shell.publish(b"{}", subject="events.b")
    lines = shell("tail", "events.a", "--no-follow", "--since", "2").stdout.splitlines()
    assert [line.split()[1:] for line in lines] == [["2", "events.a", '{"n":2}'], ["3", "events.a", '{"n":3}']]


def test_tail_stops_after_count(shell: Shell) -> None:
    """While following, too: the log has more than was asked for."""
    shell.publish(b"1", b"2", b"3")
    lines = shell("tail", "--since", "1", "--count", "2", "--json").stdout.splitlines()
    assert [json.loads(line)["body"] for line in lines] == [1, 2]


def test_tail_since_a_time_ago(shell: Shell) -> None:
    """`-5m` begins with the first entry that is younger than that."""
    shell.publish(b"1", b"2")
    assert shell("tail", "--no-follow", "--since", "-5m").stdout == ""  # the store's clock stands in 2023
    assert len(shell("tail", "--no-follow", "--since", "2020-01-01T00:00").stdout.splitlines()) == 2


def test_tail_makes_a_strangers_text_harmless(shell: Shell) -> None:
    """Control characters reach the terminal as visible escapes."""
    shell.publish(f'"{EVIL}"'.encode())
    out = shell("tail", "--no-follow").stdout
    assert "\x1b" not in out
    assert "\\x1b]0;owned\\x07" in out


def test_tail_gives_bytes_that_are_no_text_as_base64(shell: Shell) -> None:
    """In JSON output nothing of a body is lost."""
    shell.publish(b"\xff\x00")
    assert json.loads(shell("tail", "--no-follow", "--json").stdout)["base64"] == "/wA="


def test_tail_live_wants_channels(shell: Shell) -> None:
    """Listening to everything there is on an engine is nothing a person means."""
    result = shell("tail", "--live")
    assert result.exit_code == 2
    assert "--live needs the channels" in result.stderr


def test_dlq_lists_key_reason_error_and_attempts(shell: Shell) -> None:
    """What a person needs to decide stands in one line each."""
    shell.declare("save")
    shell.bury("save")
    (letter,) = shell.json("dlq", "ls", "--flat")
    assert (letter["key"], letter["reason"], letter["attempts"]) == ("save/1", "handler_error", 1)
    line = shell("dlq", "ls", "--flat").stdout.splitlines()[1]
    assert line.split()[:5] == ["save/1", "events.a", "handler_error", "ValueError:", "too"]


def test_dlq_gathers_many_of_a_kind(shell: Shell) -> None:
    """What died of the same error is one line."""
    shell.declare("save")
    shell.bury("save", 30)
    shell.bury("save", 2, error="KeyError")
    lines = shell("dlq", "ls").stdout.splitlines()
    assert [(line.split()[2], line.split()[-3]) for line in lines[1:]] == [("30", "ValueError:"), ("2", "KeyError:")]


def test_dlq_show_has_traceback_and_original_bytes(shell: Shell) -> None:
    """The traceback and the body as it came, made harmless for the terminal and unchanged with --body."""
    shell.declare("save")
    shell.bury("save", body=EVIL.encode())
    out = shell("dlq", "show", "save/1").stdout
    assert TRACEBACK in out
    assert "\\x1b]0;owned\\x07" in out
    assert "\x1b" not in out
    assert shell("dlq", "show", "save/1", "--body").stdout_bytes == EVIL.encode()


def test_dlq_show_says_what_is_missing(shell: Shell) -> None:
    """A key that is not there is exit code 5, and what is there is shown all the same."""
    shell.declare("save")
    shell.bury("save")
    result = shell("dlq", "show", "save/1", "save/9")
    assert result.exit_code == 5
    assert "no dead letter save/9" in result.stderr
    assert "save/1" in result.stdout


def test_dlq_redrive_puts_back_to_the_group_that_failed(shell: Shell) -> None:
    """The other group does not get the message again."""
    shell.declare("save", "audit")
    shell.bury("save")
    assert shell("dlq", "redrive", "save/1").stdout == "1 put back to save\n"
    counts = shell.json("stats")["groups"]
    assert (counts["save"]["waiting"], counts["save"]["dead"], counts["audit"]["waiting"]) == (1, 0, 1)


def test_dlq_redrive_selects_by_group_and_reason(shell: Shell) -> None:
    """Only what has both is moved."""
    shell.declare("save", "audit")
    shell.bury("save", 3)
    assert shell("dlq", "redrive", "--group", "save", "--reason", "timeout").exit_code == 5
    assert shell.json("dlq", "redrive", "--group", "save", "--reason", "handler_error") == {"selected": 3, "done": 3}


def test_dlq_dry_run_changes_nothing(shell: Shell) -> None:
    """It says how many would be meant and leaves them."""
    shell.declare("save")
    shell.bury("save", 2)
    assert shell("dlq", "drop", "--all", "--dry-run").stdout == "2 of save would be dropped (dry run)\n"
    assert shell("dlq", "redrive", "--all", "--dry-run").stdout == "2 would go back to save (dry run)\n"
    assert shell.json("stats")["groups"]["save"]["dead"] == 2


def test_dlq_drop_refuses_where_nobody_can_be_asked(shell: Shell) -> None:
    """Without a terminal and without --yes nothing is destroyed; with it, it is."""
    shell.declare("save")
    shell.bury("save", 2)
    refused = shell("dlq", "drop", "--all")
    assert refused.exit_code == 2
    assert "2 message(s) of save" in refused.stderr
    assert shell.json("stats")["groups"]["save"]["dead"] == 2
    assert shell("dlq", "drop", "--all", "--yes").stdout == "2 dropped\n"
    assert shell.json("stats")["groups"]["save"]["dead"] == 0


def test_dlq_wants_to_know_which(shell: Shell) -> None:
    """A verb without a selection is wrong usage, not everything."""
    assert shell("dlq", "drop", "--yes").exit_code == 2
    assert shell("dlq", "redrive", "save-1").exit_code == 2


def test_groups_shows_what_each_has_before_it(shell: Shell) -> None:
    """Name, filters and counts."""
    shell.declare("save")
    shell.publish(b"1", b"2")
    (group,) = shell.json("groups", "ls")
    assert (group["group"], group["filters"], group["waiting"], group["paused"]) == ("save", ["events.a"], 2, False)


def test_groups_pause_and_resume(shell: Shell) -> None:
    """A paused group gets nothing, a resumed one goes on where it was."""
    shell.declare("save")
    shell.publish(b"1")
    assert shell("groups", "pause", "save").exit_code == 0
    assert shell.json("groups", "ls")[0]["paused"]
    assert shell.play(lambda engine: engine.pull("save", 1, 0.0)) == []
    shell("groups", "resume", "save")
    assert len(shell.play(lambda engine: engine.pull("save", 1, 0.0))) == 1


def test_groups_rm_is_refused_while_something_is_pending(shell: Shell) -> None:
    """Messages that wait are given up only when that is said in so many words."""
    shell.declare("save")
    shell.publish(b"1")
    refused = shell("groups", "rm", "save", "--yes")
    assert refused.exit_code == 1
    assert "1 message(s) to handle" in refused.stderr
    assert shell("groups", "rm", "save", "--discard-pending").exit_code == 2  # nobody to ask
    assert shell("groups", "rm", "save", "--discard-pending", "--yes").stdout == "save is removed\n"
    assert shell.json("groups", "ls") == []


def test_groups_rename_goes_on_behind_what_was_handled(shell: Shell) -> None:
    """A renamed group gets what comes later and nothing a second time; its history does not look unclaimed."""
    shell.declare("save")
    shell.publish(b"1")
    refused = shell("groups", "rename", "save", "store", "--yes")
    assert (refused.exit_code, "1 message(s) to handle" in refused.stderr) == (1, True)
    shell.play(lambda engine: handled(engine, "save", 1))
    assert shell("groups", "rename", "save", "store", "--yes").stdout == "save goes on as store\n"
    shell.publish(b"2")
    assert [group["group"] for group in shell.json("groups", "ls")] == ["store"]
    assert shell.play(lambda engine: handled(engine, "store", 10)) == [b"2"]
    assert shell.json("ls")[0]["unclaimed"] == 0
    shell.declare("other")
    assert "is taken" in shell("groups", "rename", "other", "save", "--yes").stderr


def test_groups_narrow_takes_filters_away(shell: Shell) -> None:
    """A narrowed group gets the rest of its subjects; what it does not listen to, or all it has, is refused."""
    shell.declare("save")
    shell.declare("save", filter="events.b")
    assert shell("groups", "narrow", "save", "events.c", "--yes").exit_code == 5
    assert "groups rm save" in shell("groups", "narrow", "save", "events.a", "events.b", "--yes").stderr
    assert shell("groups", "narrow", "save", "events.a", "--yes").stdout == "save listens to events.b\n"
    shell.publish(b"a")
    shell.publish(b"b", subject="events.b")
    assert shell.play(lambda engine: handled(engine, "save", 10)) == [b"b"]


async def handled(engine: MemoryEngine, group: str, limit: int) -> list[bytes]:
    deliveries = await engine.pull(group, limit, 0.0)
    await engine.settle([Done(delivery) for delivery in deliveries])
    return [delivery.entry.body for delivery in deliveries]


@pytest.mark.parametrize("words", [["ls"], ["stats"], ["groups", "ls"], ["dlq", "ls"], ["pub", "events.a", "{}"]])
def test_a_namespace_of_another_version_is_refused(shell: Shell, words: list[str]) -> None:
    """No command touches a namespace whose layout this version does not know."""
    shell.play(lambda engine: engine.register("claims", b'{"layout": 99}', 0))
    result = shell(*words)
    assert result.exit_code != 0
    assert "another version of Tidings (layout 99" in result.stderr
    assert shell.play(lambda engine: engine.stats()).messages == 0


def test_ls_says_when_unclaimed_events_expire(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expiry is the age of the oldest and the setting; it may be never."""
    shell.publish(b"1", subject="events.typo")
    assert shell.json("ls")[0]["expires"] == "2023-12-14T22:13:20.000Z"
    monkeypatch.setenv("TIDINGS_RETENTION_UNCLAIMED", "never")
    assert shell.json("ls")[0]["expires"] == "never"


def test_an_unknown_group_is_not_found(shell: Shell) -> None:
    """The sentence says which groups there are."""
    shell.declare("save")
    result = shell("groups", "pause", "sav")
    assert result.exit_code == 5
    assert "there are: save" in result.stderr


def test_ls_says_who_wants_a_subject_and_what_nobody_wants(shell: Shell) -> None:
    """Claimed subjects name their groups; the others count as unclaimed."""
    shell.declare("save")
    shell.publish(b"1", b"2")
    shell.publish(b"1", subject="events.typo")
    found = {entry["subject"]: entry for entry in shell.json("ls")}
    assert (found["events.a"]["groups"], found["events.a"]["unclaimed"]) == (["save"], 0)
    assert (found["events.typo"]["groups"], found["events.typo"]["unclaimed"]) == ([], 1)


def test_explain_says_why_for_each_group(shell: Shell) -> None:
    """One has done it, one does not want it, and the reason is given."""
    shell.declare("save")
    shell.declare("other", filter="events.b")
    shell.publish(b"1")

    async def handle(engine: MemoryEngine) -> None:
        await engine.settle([Done(delivery) for delivery in await engine.pull("save", 1, 0.0)])

    shell.play(handle)
    groups = shell.json("explain", "1")["groups"]
    assert groups["save"]["state"] == "done"
    assert groups["other"] == {"state": "not wanted", "detail": "it listens to events.b", "behind": None}


def test_explain_shows_the_beginning_of_a_long_error(shell: Shell) -> None:
    """The table stays a table: the first line of what the handler said, cut behind a word; JSON has all of it."""
    shell.declare("save")
    shell.publish(b"1")
    said = f"no room for {'many words ' * 40}\nline two"

    async def die(engine: MemoryEngine) -> None:
        (delivery,) = await engine.pull("save", 1, 0.0)
        await engine.settle([Dead(delivery, "handler_error", Failure("ValueError", said))])

    shell.play(die)
    (row,) = [line for line in shell("explain", "1").stdout.splitlines() if line.startswith("save")]
    assert "no room for many" in row
    assert row.endswith(("many …", "words …"))
    assert len(row) < 130
    assert said in shell.json("explain", "1")["groups"]["save"]["detail"]


def test_explain_finds_a_message_by_its_id(shell: Shell) -> None:
    """By a given id, and by the one that a message without headers has from its place."""
    shell("pub", "events.a", "1", "--id", "order-7")
    shell.publish(b"2")
    assert shell.json("explain", "order-7")["position"] == 1
    id = shell.json("explain", "2")["id"]
    assert id.startswith("tidings-2-")
    assert shell.json("explain", id)["position"] == 2
    assert shell("explain", f"{id}9").exit_code == 5, "that of another log, which was stored at another time"
    missing = shell("explain", "order-8")
    assert missing.exit_code == 5
    assert "no stored message 'order-8'" in missing.stderr


def test_request_without_anybody_who_answers(shell: Shell) -> None:
    """It is known at once, and exit code 5."""
    result = shell("request", "todo.count")
    assert result.exit_code == 5
    assert "nobody answers 'todo.count'" in result.stderr


def test_a_slip_in_a_subject_is_told(shell: Shell) -> None:
    """Near a subject that a group wants, that one is named; far from all of them, none is."""
    shell.declare("save", filter="events.todo.newitem")
    assert "Did you mean events.todo.newitem?" in shell("pub", "events.todo.newitm", "{}").stderr
    assert "Did you mean" not in shell("pub", "events.ship", "{}").stderr


def test_dlq_show_has_the_application_s_own_lines(shell: Shell) -> None:
    """What libraries stand between is left out and said to be; with --full it is there."""
    library = f'  File "{msgspec.__file__}", line 7, in decode\n    decoder.decode(body)\n'
    traceback = (
        "Traceback (most recent call last):\n"
        f'{library}  File "/srv/shop/app.py", line 12, in save\n    price(item)\n{library}ValueError: no price'
    )
    shell.declare("save")
    shell.bury("save", traceback=traceback)
    short, full = shell.out("dlq", "show", "save/1"), shell.out("dlq", "show", "save/1", "--full")
    assert 'File "/srv/shop/app.py", line 12' in short
    assert "msgspec" not in short
    assert "which --full shows" in short
    assert traceback in full


def test_dlq_redrive_of_nothing_and_for_nobody(shell: Shell) -> None:
    """All of nothing is nothing to put back, and done; where no worker runs that is said beside what was done."""
    shell.declare("save")
    for act in ("redrive", "drop"):
        nothing = shell("dlq", act, "--all")
        assert nothing.exit_code == 0
        assert nothing.stdout.startswith("nothing to ")
    shell.bury("save")
    assert "no worker of save runs" in shell("dlq", "redrive", "--all").stderr
