"""Dead letters above the engine: what is the same error, which are meant, moving many, and the file."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from shell import MemoryShell
from tidings import claims
from tidings.clock import ManualClock
from tidings.deadletters import Act, Selection, acts, fingerprint, kinds, move, note, pages, to_letter, to_line
from tidings.deadletters.fingerprint import normalised, place
from tidings.engine import Dead, DeadLetter, Entry, Failure, Outgoing
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.errors import EngineUnavailable, InvalidMessage

TRACEBACK = """Traceback (most recent call last):
  File "/app/shop/old.py", line 1, in cause
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/tidings/handling.py", line 190, in _call
    return await function(**arguments)
  File "/app/shop/handlers.py", line {line}, in ship
    stock.take(order.number)
  File "/venv/lib/python3.11/site-packages/sqlalchemy/orm/session.py", line 12, in get
    raise ValueError
ValueError: no stock
"""
APP = """
import tidings

bus = tidings.Bus("shop")


class Ordered(tidings.Event, subject="events.a"):
    number: int


@bus.on(Ordered, group="save")
async def save(order: Ordered) -> None: ...
"""


def failure(message: str = "no stock", *, line: int = 7, **other: str) -> Failure:
    return replace(Failure("ValueError", message, TRACEBACK.format(line=line), "shop:ship", "here", "1"), **other)


def letter(position: int, *, group: str = "save", died: float = 100.0, body: bytes = b"{}", **other: Any) -> DeadLetter:
    entry = Entry(position, other.pop("subject", "events.a"), 50.0, {"ce-id": str(position)}, body)
    return replace(DeadLetter(group, entry, "handler_error", failure(), 8, died), **other)


# The same error


@pytest.mark.parametrize(
    "message",
    [
        "item 17 of 0x7f3a not found after 1.5 s: 'Ann'",
        "item 4 of 0xdeadbeef not found after 2 s: 'Bob\\'s'",
        "item -3 of 0x0 not found after 10,000 s: ''",
    ],
)
def test_numbers_ids_and_quoted_values_make_no_difference(message: str) -> None:
    """The same sentence about another message is the same error."""
    assert normalised(message) == "item 0 of <id> not found after 0 s: '…'"


def test_ids_are_told_from_words() -> None:
    """Ids of all kinds go, words and names with digits in them stay."""
    text = "no 018f5e7a-1111-7abc-8def-0123456789ab, no 3f2a9c4b7d, but \"x y\", sha256, deadline, don't and won't"
    assert normalised(text) == "no <id>, no <id>, but '…', sha256, deadline, don't and won't"


def test_a_very_long_message_costs_no_time() -> None:
    """Only the beginning counts, so that nobody's message keeps a command busy."""
    assert len(normalised("a'" * 1_000_000)) <= 1000


def test_the_place_is_the_innermost_frame_of_the_application() -> None:
    """Frames of libraries and of Tidings are passed over, and so is what was only the cause."""
    assert place(TRACEBACK.format(line=7)) == "shop/handlers.py:ship"
    assert place('Traceback (most recent call last):\n  File "/x/site-packages/a/b.py", line 1, in f\n') == "a/b.py:f"
    assert place("") == ""


def test_a_fingerprint_outlives_an_edit_of_the_file_and_no_more() -> None:
    """The line may move; another handler, type, function or sentence is another error."""
    same = {fingerprint(failure("no 1", line=7)), fingerprint(failure("no 2", line=9, host="there", version="2"))}
    assert len(same) == 1
    others = (failure("yes 1"), failure("no 1", handler="h"), failure("no 1", error="E"), failure("no 1", traceback=""))
    assert len(same | {fingerprint(other) for other in others}) == 5


async def some(*found: Sequence[DeadLetter]) -> AsyncIterator[Sequence[DeadLetter]]:
    for page in found:
        yield page


async def test_kinds_have_count_first_and_last() -> None:
    """Letters of one error in one group are one kind, over the pages; the most frequent first."""
    first, second = [letter(1, died=5.0), letter(2, died=3.0)], [letter(3, died=9.0), letter(4, reason="timeout")]
    kind, other = await kinds(some(first, second))
    assert (kind.count, kind.first, kind.last, kind.sample.key) == (3, 3.0, 9.0, "save/1")
    assert (other.reason, other.count) == ("timeout", 1)


# Which are meant


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(), [1, 2, 3]),
        (Selection(keys=("save/2",)), [2]),
        (Selection(group="audit"), [3]),
        (Selection(reason="timeout"), [2]),
        (Selection(subject="events.*.b"), [3]),
        (Selection(since=20.0), [2, 3]),
        (Selection(before=20.0), [1]),
        (Selection(since=10.0, before=30.0, group="save"), [1, 2]),
        (Selection(error=fingerprint(failure())[:4]), [1, 2]),
    ],
)
def test_a_selection_takes_what_has_everything(selection: Selection, meant: list[int]) -> None:
    """Each option narrows, and a fingerprint may be cut short."""
    every = [
        letter(1, died=10.0),
        letter(2, died=20.0, reason="timeout"),
        letter(3, died=30.0, group="audit", subject="events.a.b", failure=failure("another")),
    ]
    assert [found.entry.position for found in every if selection.takes(found)] == meant


# Moving


async def test_moving_keeps_to_its_rate_and_counts() -> None:
    """Never more at any moment than the rate allows by then, in parts of a second; the count is of what was there."""
    clock, moved = ManualClock(), list[tuple[float, int]]()
    told: list[tuple[int, int]] = []

    async def act(letters: Sequence[DeadLetter]) -> int:
        moved.append((clock.monotonic(), len(letters)))
        return len(letters) - 1

    every = [letter(position) for position in range(100)]
    moving = asyncio.create_task(
        move(act, some(every[:35], every[35:]), clock, rate=50.0, told=lambda *n: told.append(n))
    )
    while not moving.done():
        await clock.advance(0.05)
    batches = len(moved)
    assert await moving == 100 - batches
    assert told[-1] == (100, 100 - batches)
    assert max(size for _, size in moved) == 5
    for index, (when, size) in enumerate(moved):
        assert sum(count for _, count in moved[:index]) <= 50.0 * when + 1e-6 + size
    assert 1.8 <= moved[-1][0] <= 2.1


async def test_an_error_leaves_the_rest_as_it_is() -> None:
    """What was moved is told, and nothing behind the error is touched."""
    told: list[tuple[int, int]] = []

    async def act(letters: Sequence[DeadLetter]) -> int:
        if told:
            raise OSError("gone")
        return len(letters)

    with pytest.raises(OSError, match="gone"):
        await move(act, some([letter(n) for n in range(300)]), ManualClock(), told=lambda *n: told.append(n))
    assert told == [(100, 100)]


# The file


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", "null", to_line(letter(1)).replace('"text"', '"html"'), "\x00", "[" * 100_000]
)
def test_a_line_that_is_no_letter_is_refused(line: str) -> None:
    """With a sentence that names what writes them."""
    with pytest.raises(InvalidMessage, match="dlq export"):
        to_letter(line)


def test_bytes_that_are_no_base64_are_refused() -> None:
    """A damaged line never becomes another body."""
    line = to_line(letter(1, body=b"\xff\x00\x01"))
    assert '"base64"' in line
    with pytest.raises(InvalidMessage, match="base64"):
        to_letter(line.replace("/wAB", "/wA!B"))


# The command line


class Shell(MemoryShell):
    command = ("dlq",)

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def bury(self, *bodies: bytes, message: str = "no stock", subject: str = "events.a") -> None:
        """Publish, and let each die of a message that names its position."""
        at = self.store.log.last

        async def die(engine: MemoryEngine) -> None:
            await claims.declare(engine, [claims.Wish("save", ("events.>",))], lease=30.0)
            await engine.publish(
                [Outgoing(subject, body, {"ce-id": "1"}, f"{at}-{n}") for n, body in enumerate(bodies)]
            )
            for found in await engine.pull("save", len(bodies), 0):
                await engine.settle([Dead(found, "handler_error", failure(f"{message} {found.entry.position}"))])

        self.play(die)

    def letters(self) -> list[DeadLetter]:
        async def read(engine: MemoryEngine) -> list[DeadLetter]:
            return [found async for page in pages(engine, Selection()) for found in page]

        return self.play(read)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    (tmp_path / "deadshop.py").write_text(APP)
    yield Shell(tmp_path)
    sys.modules.pop("deadshop", None)


def test_ls_shows_one_line_for_each_error(shell: Shell) -> None:
    """By default with count and sample; its id selects them for every other verb."""
    shell.bury(b"1", b"2", b"3")
    shell.bury(b"4", message="out of paper")
    kind, other = json.loads(shell.out("ls", "--json"))
    assert (kind["count"], kind["sample"]["key"], other["count"]) == (3, "save/1", 1)
    assert kind["error"] in shell.out("ls").splitlines()[1]
    assert len(json.loads(shell.out("ls", "--flat", "--json", "--error", kind["error"]))) == 3
    assert shell.out("redrive", "--error", other["error"]) == "1 put back to save\n"
    assert [found.entry.body for found in shell.letters()] == [b"1", b"2", b"3"]


def test_ls_of_nothing(shell: Shell) -> None:
    """An empty table is a sentence, an empty list is one."""
    assert shell.out("ls", "--json") == "[]\n"
    assert shell.out("ls", "--flat", "--json") == "[]\n"
    assert "no dead letters" in shell("ls").stderr


def test_redrive_by_subject_and_time(shell: Shell) -> None:
    """Filters narrow each other; what they leave out stays."""
    shell.bury(b"1")
    shell.bury(b"2", subject="events.b")
    now = "2023-11-14T22:13:20+00:00"  # where the clock of the store stands
    assert shell("redrive", "--since", "2023-11-14T22:13:21+00:00").exit_code == 5
    assert shell.out("redrive", "--since", now, "--subject", "events.b") == "1 put back to save\n"
    assert [found.entry.body for found in shell.letters()] == [b"1"]
    assert shell("redrive", "--since", "yesterday").exit_code == 2


def test_redrive_with_a_rate_that_is_none(shell: Shell) -> None:
    """Wrong usage, and nothing is moved."""
    shell.bury(b"1")
    assert shell("redrive", "--all", "--rate", "fast").exit_code == 2
    assert len(shell.letters()) == 1


def test_redrive_that_loses_its_engine_is_done_partly(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3 with the number that was moved; the same command goes on with the rest."""
    shell.bury(*[b"{}"] * 250)
    redrive, calls = MemoryEngine.redrive, list[int]()

    async def once(engine: MemoryEngine, letters: Sequence[DeadLetter]) -> int:
        calls.append(len(letters))
        if len(calls) == 2:
            raise EngineUnavailable("nobody answers")
        return await redrive(engine, letters)

    monkeypatch.setattr(MemoryEngine, "redrive", once)
    partly = shell("redrive", "--all")
    assert partly.exit_code == 3
    assert "100 of 250 were done, then: nobody answers" in partly.stderr
    assert shell.out("redrive", "--all") == "150 put back to save\n"


def test_redrive_beside_somebody_else_is_done_partly(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3 with the number of those that had gone between the look and the act."""
    shell.bury(b"1", b"2", b"3")
    redrive = MemoryEngine.redrive

    async def late(engine: MemoryEngine, letters: Sequence[DeadLetter]) -> int:
        await engine.discard(letters[:1])
        return await redrive(engine, letters)

    monkeypatch.setattr(MemoryEngine, "redrive", late)
    partly = shell("redrive", "--all", "--json")
    assert (partly.exit_code, json.loads(partly.stdout)) == (3, {"selected": 3, "done": 2})


def test_edit_is_checked_against_the_events_type(shell: Shell) -> None:
    """With an application known the new body must be what its type takes; a refused one changes nothing."""
    shell.bury(b'{"number": "one"}')
    refused = shell("edit", "save/1", "--body", "-", "--app", "deadshop:bus", input=b'{"number": "two"}')
    assert refused.exit_code == 2
    assert "no Ordered" in refused.stderr
    assert shell.letters()[0].original is None
    shell.out(
        "edit", "save/1", "--body", "-", "--app", "deadshop:bus", "--because", "typing error", input=b'{"number":1}'
    )
    [edited] = shell.letters()
    assert (edited.entry.body, edited.original) == (b'{"number":1}', b'{"number": "one"}')
    shown = shell.out("show", "save/1")
    assert 'original  {"number": "one"}' in shown
    assert 'edited    {"number":1}' in shown
    assert shell.out("show", "save/1", "--body") == '{"number":1}'
    assert shell.out("show", "save/1", "--original") == '{"number": "one"}'
    [act] = json.loads(shell.out("log", "--json"))
    assert (act["what"], act["which"], act["because"]) == ("edit", "save/1", "typing error")


def test_edit_without_an_application_wants_json(shell: Shell) -> None:
    """Unless the person says that any bytes are meant."""
    shell.bury(b"{}")
    assert shell("edit", "save/1", "--body", "-", input=b"{").exit_code == 2
    shell.out("edit", "save/1", "--body", "-", "--unchecked", input=b"\xff")
    assert shell.letters()[0].entry.body == b"\xff"
    assert shell("edit", "save/9", "--body", "-", input=b"{}").exit_code == 5


def test_edit_opens_the_editor(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """$EDITOR gets the bytes as they are; the line's end that it adds does not count."""
    editor = shell.folder / "editor"
    editor.write_text('#!/bin/sh\nsed -i \'s/1/2/\' "$1"; echo >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    shell.bury(b'{"number": 1}')
    shell.out("edit", "save/1")
    assert shell.letters()[0].entry.body == b'{"number": 2}'
    assert "Nothing was changed" in shell("edit", "save/1").stderr


def test_export_and_import_of_everything(shell: Shell) -> None:
    """What was exported and dropped is there again byte for byte; a second time and a foreign line change nothing."""
    shell.bury(b"\xff\x00", b"{}", "ä\u2028".encode())
    before = shell.letters()
    lines = shell.out("export").encode()
    assert lines.isascii()
    assert lines.count(b"\n") == 3
    shell.out("drop", "--all", "--yes", "--because", "to see")
    assert shell.letters() == []
    assert shell.out("import", "-", input=lines) == "3 stored, 0 there already, 0 refused\n"
    assert shell.out("import", "-", input=lines) == "0 stored, 3 there already, 0 refused\n"
    assert shell.letters() == before
    foreign = to_line(replace(before[0], entry=replace(before[0].entry, position=99))).encode()
    refused = shell("import", "-", input=foreign)
    assert refused.exit_code == 3
    assert "another message" in refused.stderr
    broken = shell("import", "-", input=lines + b"nonsense\n")
    assert broken.exit_code == 2
    assert "line 4" in broken.stderr


def test_drop_says_who_and_why(shell: Shell) -> None:
    """What nobody can undo is written down before it is done."""
    shell.bury(b"1", b"2")
    shell.out("drop", "--group", "save", "--yes", "--because", "of the old importer")
    line = shell.out("log").splitlines()[1]
    assert "drop" in line
    assert "--group save" in line
    assert line.endswith("of the old importer")


async def test_the_log_of_acts_keeps_the_newest() -> None:
    """A hundred of them: the record stays small."""
    engine = MemoryEngine(MemoryStore(ManualClock()))
    await engine.open()
    for number in range(103):
        await note(engine, Act(float(number), "me", "drop", "--all", 1))
    assert [act.at for act in await acts(engine)] == [float(number) for number in range(3, 103)]
    await engine.close()


def test_unclaimed_events_have_a_list_of_their_own(shell: Shell) -> None:
    """What no group has ever wanted, with the moment it goes; dead letters are not among them."""
    assert "no unclaimed events" in shell("unclaimed").stderr

    async def publish(engine: MemoryEngine) -> None:
        await engine.publish([Outgoing("events.nobody", b"{}", {}, str(n)) for n in range(2)])

    shell.play(publish)
    [found] = json.loads(shell.out("unclaimed", "--json"))
    assert (found["subject"], found["count"], found["first"]) == ("events.nobody", 2, 1)
    assert found["expires"] == "2023-12-14T22:13:20.000Z"
    assert shell.out("unclaimed").splitlines()[1].split()[:3] == ["events.nobody", "2", "1"]
