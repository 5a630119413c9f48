"""What becomes of a message whose handler fails, is cancelled or takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import sys
import threading
from typing import Any

import msgspec
import pytest

import tidings
from handlers import New, Saved, died, items, new_bus, publish, until
from tidings.retry import NEVER
from tidings.testing import TestBus


class Client:
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


async def test_a_failing_message_is_retried_and_then_dies_whole() -> None:
    """After all attempts the dead letter has the original bytes and headers, the error, its traceback and handler."""
    bus, attempts = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> None:
        attempts.append(m.attempt)
        raise ValueError("bad item")

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        await t.settle()
        (letter,) = await t.dead_letters()
        (stored,) = await t.published()
    assert attempts == [1, 2, 3]
    assert (letter.reason, letter.attempts, letter.group) == ("handler_error", 3, "g")
    assert (letter.entry.body, dict(letter.entry.headers)) == (stored.body, dict(stored._headers))
    failure = letter.failure
    assert (failure.error, failure.message, failure.version) == ("ValueError", "bad item", tidings.__version__)
    assert failure.handler.endswith("handle")
    assert failure.host
    assert 'raise ValueError("bad item")' in failure.traceback


async def test_a_failing_message_harms_no_other() -> None:
    """Messages behind a poisonous one are handled while it waits for its retry."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g", concurrency=1, retry=tidings.RetryPolicy(first=60, most=60))
    async def handle(new: New) -> None:
        if new.item == "poison":
            raise ValueError
        seen.append(new.item)

    await publish(bus, New("poison"), *(New(str(n)) for n in range(20)))
    assert seen == [str(n) for n in range(20)]


async def test_reject_is_a_dead_letter_at_once() -> None:
    """No retry, the reason in the dead letter."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        raise tidings.Reject("no such user")

    (letter,) = await died(bus, New())
    assert (letter.reason, letter.failure.message, letter.attempts) == ("rejected", "no such user", 1)


async def test_retry_later_says_when_and_counts() -> None:
    """The message comes back after the time the handler chose, and ends as a dead letter if that never helps."""
    bus, attempts = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> None:
        attempts.append(m.attempt)
        raise tidings.RetryLater("not ready", after=30)

    async with TestBus(bus) as t:
        await bus.publish(New())
        await t.settle()
        assert attempts == [1]
        await t.clock.advance(29)
        await t.settle()
        assert attempts == [1]
        await t.clock.advance(2)
        await t.settle()
        assert attempts == [1, 2]
        await t.clock.advance(31)
        await t.settle()
        assert [(d.reason, d.attempts) for d in await t.dead_letters()] == [("handler_error", 3)]


async def test_a_policy_per_exception() -> None:
    """`NEVER` for one exception sends it to the dead letters at once, others are retried."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g", retry=tidings.RetryPolicy(attempts=2, first=0, most=0, per={LookupError: NEVER}))
    async def handle(new: New) -> None:
        calls.append(new.item)
        raise KeyError if new.item == "key" else ValueError

    await publish(bus, New("key"))
    await publish(bus, New("value"))
    assert calls == ["key", "value", "value"]


@pytest.mark.parametrize("mistake", ["publish", "follow", "return", "config"])
async def test_a_mistake_of_the_program_is_a_dead_letter_at_once(mistake: str) -> None:
    """What would be refused at each attempt is not tried again: the dead letter names the error."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> Any:
        calls.append(new)
        match mistake:
            case "publish":
                await bus.publish(Client())
            case "follow":
                return Saved(item=float("nan"))  # type: ignore[arg-type]
            case "return":
                return Client()
            case _:
                raise tidings.ConfigError("write something else")
        return None

    (letter,) = await died(bus, New())
    assert (len(calls), letter.attempts, letter.reason) == (1, 1, "handler_error")
    names = {"publish": "InvalidMessage", "follow": "InvalidMessage", "return": "TypeError", "config": "ConfigError"}
    assert letter.failure.error == names[mistake]


async def test_redrive_starts_the_attempts_again() -> None:
    """A redriven message has its first attempt again, under the same id, and only in the group that failed."""
    bus, broken = new_bus(), [True]
    seen: list[Any] = []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> None:
        if broken:
            raise ValueError
        seen.append((m.id, m.attempt))

    @bus.on(New, group="other")
    async def other(new: New) -> None:
        seen.append("other")

    async with TestBus(bus) as t:
        receipt = await bus.publish(New())
        await t.settle()
        broken.clear()
        assert await t.redrive("g") == 1
        await t.settle()
        assert seen == ["other", (receipt.id, 1)]
        assert await t.dead_letters() == []
        assert await t.redrive("g") == 0


@pytest.mark.parametrize("error", [Unprintable(), ValueError("\ud800 \x00"), ValueError("x" * 100_000)])
async def test_any_exception_becomes_a_storable_dead_letter(error: Exception) -> None:
    """Errors without a text, with half a surrogate pair, or of any length end as a dead letter and not as a loop."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        raise error

    (letter,) = await died(bus, New())
    assert letter.attempts == 3
    assert len(msgspec.json.encode(letter.failure)) < 20_000
    assert "\x00" not in letter.failure.message + letter.failure.traceback


async def test_a_cancelled_error_of_the_handlers_own_is_a_failure() -> None:
    """A handler whose inner task was cancelled fails like any other: no hot loop, no silence, attempts counted."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        calls.append(1)
        inner = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    (letter,) = await died(bus, New())
    assert (len(calls), letter.reason, letter.failure.error) == (3, "handler_error", "CancelledError")
    assert "the worker had not cancelled it" in letter.failure.message


async def test_a_thread_that_raises_cancelled_error_fails() -> None:
    """The same from a plain `def` handler."""
    bus = new_bus()

    @bus.on(New, group="g")
    def handle(new: New) -> None:
        raise asyncio.CancelledError

    (letter,) = await died(bus, New())
    assert (letter.failure.error, letter.attempts) == ("CancelledError", 3)


@pytest.mark.parametrize("order", [False, True])
async def test_a_handler_that_cancels_its_own_task_fails(order: bool) -> None:
    """The worker did not do it, so it counts: after all attempts the message is dead, and others are handled."""
    bus, handled = new_bus(), []

    @bus.on(New, group="g", order=order)
    async def handle(new: New) -> None:
        if new.item == "bad":
            await cancel_this_task()
        handled.append(new.item)

    (letter,) = await died(bus, New("bad"), New("good"))
    assert (letter.reason, letter.attempts, letter.failure.error) == ("handler_error", 3, "CancelledError")
    assert "or somebody else cancelled its task" in letter.failure.message
    assert handled == ([] if order else ["good"]), "in order, what has no key waits behind it"


async def test_stop_iteration_from_a_thread_is_an_error() -> None:
    """`next()` on something empty fails the message; it does not leave the worker waiting for its thread."""
    bus = new_bus()

    @bus.on(New, group="g")
    def handle(new: New) -> None:
        next(iter(()))

    (letter,) = await died(bus, New())
    assert (letter.failure.error, letter.reason) == ("RuntimeError", "handler_error")
    assert "StopIteration" in letter.failure.message


async def test_an_engine_that_is_full_burns_no_attempt() -> None:
    """Follow-ups that cannot be stored now are nobody's fault: the message waits and gets through later."""
    bus, calls = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New, m: tidings.Message) -> Saved:
        calls.append(m.attempt)
        if len(calls) < 5:
            raise tidings.StoreFull("no space")
        return Saved(new.item)

    async with TestBus(bus) as t:
        await bus.publish(New("x"))
        for _ in range(12):  # the pauses before the five add up to 7.5 s at most
            await t.settle()
            await t.clock.advance(1.1)
        assert calls == [1] * 5
        assert await items(t, "events.saved") == ["x"]


async def test_a_handler_over_its_time_is_cancelled_and_retried() -> None:
    """The limit is measured by the clock, the reason is `timeout`, and the handler hears of it."""
    bus, heard, begun = new_bus(), [], []

    @bus.on(New, group="g", timeout=5, retry=tidings.RetryPolicy(attempts=2, first=0, most=0))
    async def handle(new: New) -> None:
        begun.append(new)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async with TestBus(bus) as t:
        await bus.publish(New())
        for attempt in (1, 2):
            await until(lambda: len(begun) == attempt)  # noqa: B023
            await t.clock.advance(5.1)
        await t.settle()
        (letter,) = await t.dead_letters()
    assert heard == ["cancelled"] * 2
    assert (letter.reason, letter.attempts, letter.failure.error) == ("timeout", 2, "TimeoutError")
    assert "after 5 s" in letter.failure.message


async def test_a_dead_letter_is_one_line_and_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """The log says which command shows it all, the error in one line, and where in the application it happened; the
    dead letter has the whole traceback. Of a handler that hangs, that is where it hangs."""
    bus = new_bus()

    @bus.on(New, group="g", retry=NEVER, timeout=5)
    async def handle(new: New) -> None:
        if new.item == "hangs":
            await asyncio.Event().wait()
        await asyncio.wait_for(asyncio.to_thread(int, "no number\nat all"), 60)

    async with TestBus(bus) as t:
        await bus.publish_many([New("bad"), New("hangs")])
        while len(letters := await t.dead_letters()) < 2:
            await t.clock.advance(1)
    for position, error, line in (
        (1, r"ValueError: invalid literal for int\(\) with base 10: 'no number\\nat all'", "await asyncio.wait_for("),
        (2, "TimeoutError: the handler was still running after 5 s and was cancelled", "await asyncio.Event()"),
    ):
        [record] = [record for record in caplog.records if f"tidings dlq show g/{position}" in record.getMessage()]
        said = logging.Formatter("%(message)s").format(record).splitlines()
        assert re.fullmatch(rf"attempt 1 of 1 failed, dead letter \(tidings dlq show g/{position}\): {error}", said[0])
        assert len(said) == 3, "the line of the handler and nothing of what it calls"
        assert line in said[2]
        [letter] = [letter for letter in letters if letter.entry.position == position]
        assert line in letter.failure.traceback
        assert "asyncio" in letter.failure.traceback


async def test_a_failure_outside_of_the_application_is_no_screenful(caplog: pytest.LogCaptureFixture) -> None:
    """Where no line of the application took part the log says so; programs that collect errors get the error."""
    bus, library = new_bus(), dict[str, Any](__name__="library", Client=Client)
    exec(compile("def make() -> Client: raise LookupError", "/usr/lib/site-packages/library.py", "exec"), library)
    bus.provide(library["make"])

    @bus.on(New, group="g", retry=NEVER)
    async def handle(new: New, client: Client) -> None: ...

    await publish(bus, New())
    [record] = [record for record in caplog.records if "dead letter" in record.getMessage()]
    assert logging.Formatter("%(message)s").format(record).endswith("\n  nowhere in the application's own lines")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_every_dead_letter_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Also of what no handler has failed on: what is rejected, undecodable or of the wrong shape."""
    bus = new_bus()

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        raise tidings.Reject("no such user")

    async with TestBus(bus) as t:
        await bus.publish(New())
        await bus.publish("events.new", {"item": 3})
        await t.settle()
    said = [record.getMessage() for record in caplog.records]
    assert "dead letter, rejected (tidings dlq show g/1): no such user" in said
    assert any(line.startswith("dead letter, invalid (tidings dlq show g/2): ") for line in said)


async def test_a_timeout_error_of_the_handlers_own_is_not_ours() -> None:
    """A dependency that timed out is a handler error."""
    bus = new_bus()

    @bus.on(New, group="g", retry=NEVER)
    async def handle(new: New) -> None:
        raise TimeoutError("the mail server")

    (letter,) = await died(bus, New())
    assert (letter.reason, letter.failure.message) == ("handler_error", "the mail server")


async def test_an_inner_time_limit_leaves_ours_alone() -> None:
    """`asyncio.timeout` and `wait_for` inside a handler work as everywhere else."""
    bus, seen = new_bus(), []

    @bus.on(New, group="g")
    async def handle(new: New) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        seen.append(new.item)

    assert await died(bus, New("x")) == []
    assert seen == ["x"]


async def test_a_thread_over_its_time_is_retried_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The thread cannot be stopped, and the log says so; the message goes on meanwhile."""
    bus, begun, go, runs = new_bus(), threading.Event(), threading.Event(), itertools.count(1)

    @bus.on(New, group="g", timeout=5, concurrency=2)
    def handle(new: New) -> None:
        if next(runs) == 1:
            begun.set()
            go.wait(20)

    try:
        async with TestBus(bus) as t:
            await bus.publish(New())
            assert await asyncio.to_thread(begun.wait, 20)
            await t.clock.advance(5)
            await t.settle()
            assert await t.dead_letters() == []
            assert next(runs) == 3
    finally:
        go.set()
    assert "a thread cannot be stopped: " in caplog.text


async def test_a_handler_that_exits_is_an_attempt_that_failed() -> None:
    """`sys.exit` in a handler, async or in a thread, ends neither the worker nor the messages behind it."""
    bus = new_bus()
    handled: list[str] = []

    @bus.on(New, group="leaves")
    async def leave(new: New) -> None:
        if new.item == "bad":
            sys.exit(3)
        handled.append(new.item)

    @bus.on(New, group="leaves-in-a-thread")
    def leave_in_a_thread(new: New) -> None:
        if new.item == "bad":
            sys.exit(3)
        handled.append(new.item)

    letters = await died(bus, New(item="bad"), New(item="good"))
    assert handled == ["good", "good"]
    assert [(letter.failure.error, letter.attempts) for letter in letters] == [("SystemExit", 3)] * 2
    assert "called sys.exit(3)" in letters[0].failure.message


async def test_engine_errors_of_the_handlers_own_making_count() -> None:
    """Only an engine that is away burns no attempt; a conflict that the handler ran into is its own failure."""
    bus = new_bus()

    @bus.on(New, group="conflicts")
    async def conflict(new: New) -> None:
        raise tidings.Conflict("mine")

    [letter] = await died(bus, New())
    assert (letter.reason, letter.failure.error, letter.attempts) == ("handler_error", "Conflict", 3)
