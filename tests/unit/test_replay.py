"""`tidings replay` and what it calls: which events are meant, and what a handler sees of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

import tidings
from handlers import New, Saved, new_bus
from shell import MemoryShell
from tidings import claims
from tidings.clock import ManualClock
from tidings.deadletters import to_letter, to_line
from tidings.engine import DeadLetter, Done, Entry, Failure, Outgoing
from tidings.engines.memory import MemoryEngine
from tidings.replay import Span, replay
from tidings.testing import TestBus


class Shell(MemoryShell):
    """On a store with six handled events, a minute apart, on two subjects."""

    command = ("replay",)

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(self.clock)
        self.play(self._history)

    async def _history(self, engine: MemoryEngine) -> None:
        wishes = [claims.Wish("both", ("events.a", "events.b")), claims.Wish("one", ("events.a",))]
        await claims.declare(engine, wishes, lease=30.0)
        for number in range(6):
            subject = f"events.{'ab'[number % 2]}"
            await engine.publish([Outgoing(subject, b"%d" % number, {}, str(number))])
            await self.clock.advance(60)
        for name in ("both", "one"):
            await engine.settle([Done(delivery) for delivery in await engine.pull(name, 10, 0)])

    def waiting(self, group: str) -> list[tuple[bytes, str]]:
        """Body and replay of what waits for the group; it is handled with that."""

        async def look(engine: MemoryEngine) -> list[tuple[bytes, str]]:
            taken = await engine.pull(group, 10, 0)
            await engine.settle([Done(delivery) for delivery in taken])
            return [(delivery.entry.body, delivery.replay) for delivery in taken]

        return self.play(look)


@pytest.fixture
def shell() -> Shell:
    return Shell()


def at(seconds: float) -> str:
    return datetime.fromtimestamp(1_700_000_000 + seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("words", "bodies"),
    [
        (["--from", "1"], b"012345"),
        (["--from", "4"], b"345"),
        (["--to", "2"], b"01"),
        (["--from", "2", "--to", "3"], b"12"),
        (["--from", "2", "--to", "300"], b"12345"),
        (["--since", at(120)], b"2345"),
        (["--since", at(120), "--subject", "events.b"], b"35"),
        (["--from", "1", "--subject", "events.*"], b"012345"),
        (["--since", at(10_000)], b""),
    ],
)
def test_what_is_meant_comes_again(shell: Shell, words: list[str], bodies: bytes) -> None:
    """By position, time and subject, to this group only; the dry run counts the same and gives nothing."""
    dry = shell.json("both", *words, "--dry-run")
    assert (dry["found"], dry["replayed"]) == (len(bodies), 0)
    assert shell.waiting("both") == []
    told = shell.json("both", *words, "--yes")
    assert (told["found"], told["replayed"]) == (len(bodies), len(bodies))
    assert shell.waiting("both") == [(b"%c" % body, told["id"]) for body in bodies]
    assert shell.waiting("one") == []


def test_only_what_the_group_listens_to(shell: Shell) -> None:
    """A group is given nothing of subjects that it does not claim."""
    assert shell.json("one", "--from", "1", "--subject", "events.>", "--yes")["replayed"] == 3
    assert [body for body, _ in shell.waiting("one")] == [b"0", b"2", b"4"]


def test_a_duration_is_so_long_ago(shell: Shell) -> None:
    """`--since 2h` counts from now: the events of the test's clock are years old."""
    assert shell.json("both", "--since", "2h", "--dry-run")["found"] == 0
    assert shell.json("both", "--since", "365000d", "--dry-run")["found"] == 6


def test_an_interrupted_replay_goes_on(shell: Shell) -> None:
    """With the id of before, what still waits is left out and said so."""
    assert shell.json("both", "--to", "2", "--id", "r1", "--yes")["replayed"] == 2
    said = shell("both", "--to", "4", "--id", "r1", "--yes")
    assert said.stdout == "2 event(s) given to both again, 2 left out: still to handle, or dead letters (replay r1)\n"
    assert shell.waiting("both") == [(b"%d" % n, "r1") for n in range(4)]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["both"], "say which events"),
        (["both", "--since", "yesterday"], "how long ago"),
        (["both", "--since", "2026-01-01T00:00"], "no time zone"),
        (["both", "--from", "1"], "say --yes"),
        (["both", "--from", "1", "--subject", "a..b"], "a..b"),
    ],
)
def test_what_is_not_clear_is_refused(shell: Shell, words: list[str], text: str) -> None:
    """With a sentence that says what to write; nothing is given to anybody."""
    result = shell(*words)
    assert result.exit_code == 2
    assert text in result.stderr
    assert shell.waiting("both") == []


def test_a_group_that_is_not_there_is_not_found(shell: Shell) -> None:
    """The exit code is that of every command on groups, and the names there are, are told."""
    result = shell("nobody", "--from", "1", "--yes")
    assert (result.exit_code, "there are: both, one" in result.stderr) == (5, True)


def test_a_dead_letter_s_file_keeps_the_replay() -> None:
    """Exported and imported, a letter is redriven with the replay it died in."""
    entry = Entry(1, "events.a", 1.0, {}, b"x")
    letter = DeadLetter("g", entry, "handler_error", Failure("E", "no"), 1, 2.0, replay="r")
    assert to_letter(to_line(letter)) == letter


async def test_a_handler_sees_the_replay() -> None:
    """`message.replay` has its id, and None on the first way; follow-ups have the ids of the first time."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(message: tidings.Message[New]) -> Saved:
        seen.append((message.data.item, message.replay, message.attempt))
        return Saved(message.data.item)

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        await t.settle()
        assert await replay(bus.engine, "g", Span(), "r") == 1
        await t.settle()
        assert len(await t.published("events.saved")) == 1
    assert seen == [("x", None, 1), ("x", "r", 1)]


async def test_a_replay_is_for_what_has_expired_as_well() -> None:
    """Somebody asked for it now: that the event was to be handled by last week does not count."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        seen.append(new.item)

    async with TestBus(bus) as t:
        await bus.publish(New("x"), expires=60)
        await t.settle()
        await t.clock.advance(3600)
        await replay(bus.engine, "g", Span(), "r")
        await t.settle()
        assert await t.dead_letters() == []
    assert seen == ["x", "x"]
