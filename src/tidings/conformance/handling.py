"""What becomes of an event in its handler."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

from tidings import Message, Reject, RetryLater, RetryPolicy
from tidings.message import identity
from tidings.retry import NEVER

from .app import AT_ONCE, Ordered, Packed, Process, application, handled, letters, process, reached
from .case import case
from .steps import message
from .world import World


@case("bus")
async def success_is_final(world: World) -> None:
    """An event whose handler returns is handled: once, by one of the processes, with its data and its first attempt."""
    seen: list[tuple[int, int]] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered, about: Message[Ordered]) -> None:
        seen.append((order.number, about.attempt))

    async with process(world, bus) as running:
        await bus.publish_many([Ordered(number=number) for number in range(20)])
        await reached(world, lambda: len(seen) >= 20, "all are handled")
        await handled(world, running.engine, "pack")
    assert sorted(seen) == [(number, 1) for number in range(20)]


@case("bus")
async def plain_functions_run_in_threads(world: World) -> None:
    """A handler that is a plain function runs in a thread, and others go on meanwhile."""
    release, threads = threading.Event(), set[int]()
    seen: list[int] = []
    bus = application(world)

    @bus.on(Ordered, group="slow")
    def slow(order: Ordered) -> None:
        threads.add(threading.get_ident())
        assert release.wait(30)

    @bus.on(Ordered, group="quick")
    async def quick(order: Ordered) -> None:
        seen.append(order.number)

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        await reached(world, lambda: seen and threads, "both run")
        release.set()
        await handled(world, running.engine, "slow", "quick")
    assert threading.get_ident() not in threads


@case("bus")
async def failure_is_retried_then_dead(world: World) -> None:
    """A handler that raises is tried as often as its policy says; then the event is a dead letter that says all: the
    reason, error, text, traceback, attempts, handler, and the original bytes."""
    attempts: list[int] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered, about: Message) -> None:
        attempts.append(about.attempt)
        raise LookupError(f"no box for {order.number}")

    async with process(world, bus) as running:
        receipt = await bus.publish(Ordered(number=7))
        [letter] = await letters(world, running.engine, "pack")
        await handled(world, running.engine, "pack")
    assert attempts == [1, 2, 3]
    assert (letter.reason, letter.attempts, letter.entry.position) == ("handler_error", 3, receipt.position)
    assert (letter.failure.error, letter.failure.message) == ("LookupError", "no box for 7")
    assert "no box for" in letter.failure.traceback
    assert letter.failure.handler.endswith("pack")
    assert letter.entry.body == b'{"number":7}'
    assert letter.entry.headers["ce-id"] == receipt.id


@case("bus")
async def a_later_success_leaves_no_trace(world: World) -> None:
    """An event that succeeds at a later attempt is handled, and no dead letter is left of it."""
    attempts: list[int] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(about: Message) -> None:
        attempts.append(about.attempt)
        if about.attempt < 3:
            raise ValueError("not yet")

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        await reached(world, lambda: len(attempts) == 3, "it is tried three times")
        await handled(world, running.engine, "pack")
        assert await running.engine.dead_letters() == []
    assert attempts == [1, 2, 3]


@case("bus")
async def policies_by_exception(world: World) -> None:
    """The policy of the exception's nearest class decides how often is tried."""
    attempts: Counter[int] = Counter()
    bus = application(world)

    @bus.on(Ordered, group="pack", retry=RetryPolicy(attempts=4, first=0.0, most=0.0, per={LookupError: NEVER}))
    async def pack(order: Ordered) -> None:
        attempts[order.number] += 1
        raise (KeyError if order.number == 1 else ValueError)("no")

    async with process(world, bus) as running:
        await bus.publish_many([Ordered(number=1), Ordered(number=2)])
        found = await letters(world, running.engine, "pack", 2)
    assert attempts == {1: 1, 2: 4}
    assert [letter.attempts for letter in found] == [1, 4]


@case("bus")
async def rejected_is_dead_at_once(world: World) -> None:
    """`Reject` makes a dead letter of the first attempt, with the reason that was given."""
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> None:
        raise Reject("we do not sell that")

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        [letter] = await letters(world, running.engine, "pack")
    assert (letter.reason, letter.attempts, letter.failure.message) == ("rejected", 1, "we do not sell that")


@case("bus")
async def retry_later_waits(world: World) -> None:
    """`RetryLater(after=…)` brings the event back not before that time, and counts as an attempt."""
    times: list[float] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(about: Message) -> None:
        times.append(world.clock.monotonic())
        if about.attempt == 1:
            raise RetryLater("closed", after=world.lease)

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        await reached(world, lambda: len(times) == 2, "it comes again")
        await handled(world, running.engine, "pack")
    assert times[1] - times[0] >= world.lease * 0.99


@case("bus")
async def too_long_is_an_attempt(world: World) -> None:
    """A handler that takes longer than its time is cancelled, tried again, and then dead with the reason `timeout`."""
    cancelled = 0
    bus = application(world)

    @bus.on(Ordered, group="pack", timeout=world.lease / 4, retry=RetryPolicy(attempts=2, first=0.0, most=0.0))
    async def pack(order: Ordered) -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        finally:
            cancelled += 1

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        [letter] = await letters(world, running.engine, "pack")
    assert (letter.reason, letter.attempts, cancelled) == ("timeout", 2, 2)


@case("bus")
async def bad_bytes_are_kept(world: World) -> None:
    """What is no JSON, or JSON of another shape, never reaches the handler: it is a dead letter at once, with its
    bytes and reason, and what comes behind it is handled."""
    seen: list[int] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> None:
        seen.append(order.number)

    async with process(world, bus) as running:
        subject = "events.shop.ordered"
        for body in (b"\xff\x00{", b'{"number": "seven"}', b"[]"):
            await running.engine.publish([message(body, subject=subject)])
        await bus.publish(Ordered(number=1))
        found = await letters(world, running.engine, "pack", 3)
        await reached(world, lambda: bool(seen), "the good one is handled")
    told = [(letter.reason, letter.entry.body, letter.attempts) for letter in found]
    assert told == [
        ("undecodable", b"\xff\x00{", 0),
        ("invalid", b'{"number": "seven"}', 0),
        ("invalid", b"[]", 0),
    ]
    assert seen == [1]


@case("bus")
async def unknown_types_are_kept(world: World) -> None:
    """A subject that a handler's filter covers, and none of its types stands for, is a dead letter `unknown_type`."""
    seen: list[object] = []
    bus = application(world)

    @bus.on("events.shop.>", group="audit")
    async def audit(event: Ordered | Packed) -> None:
        seen.append(event)

    async with process(world, bus) as running:
        await bus.publish("events.shop.burnt", {"number": 1})
        await bus.publish(Packed(number=2))
        [letter] = await letters(world, running.engine, "audit")
        await reached(world, lambda: bool(seen), "the known one is handled")
    assert (letter.reason, letter.entry.subject) == ("unknown_type", "events.shop.burnt")
    assert seen == [Packed(number=2)]


@case("bus")
async def unknown_fields_are_ignored(world: World) -> None:
    """An event with fields that this version does not know is handled: a newer publisher may add some."""
    seen: list[Ordered] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> None:
        seen.append(order)

    async with process(world, bus) as running:
        await running.engine.publish([message(b'{"number":3,"colour":"red"}', subject="events.shop.ordered")])
        await reached(world, lambda: bool(seen), "it is handled")
    assert seen == [Ordered(number=3)]


@case("bus")
async def foreign_messages_are_handled(world: World) -> None:
    """A message without any header, from any client, is handled: its subject says what it is, its place and
    time who."""
    seen: list[tuple[int, str, str]] = []
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered, about: Message) -> None:
        seen.append((order.number, about.id, about.correlation_id))

    async with process(world, bus) as running:
        [stored] = await running.engine.publish([message(b'{"number":5}', subject="events.shop.ordered")])
        await reached(world, lambda: bool(seen), "it is handled")
        [entry] = await running.engine.read([">"], stored.position - 1, 1)
    id = identity(entry, "tidings")
    assert seen == [(5, id, id)]


@case("bus")
async def a_failing_event_harms_no_other(world: World) -> None:
    """While one event fails again and again, all others of its group are handled."""
    seen: set[int] = set()
    bus = application(world, retry=RetryPolicy(attempts=1000, first=0.0, most=0.0))

    @bus.on(Ordered, group="pack", concurrency=2)
    async def pack(order: Ordered) -> None:
        if order.number == 3:
            raise ValueError("always")
        seen.add(order.number)

    async with process(world, bus):
        await bus.publish_many([Ordered(number=number) for number in range(40)])
        await reached(world, lambda: len(seen) == 39, "the others are handled")


@case("bus")
async def concurrency_is_a_limit(world: World) -> None:
    """`concurrency=` handlers of a group run at once in a process, all of them used and never one more."""
    running_now, most = 0, 0
    release = asyncio.Event()
    done: list[int] = []
    bus = application(world)

    @bus.on(Ordered, group="pack", concurrency=3)
    async def pack(order: Ordered) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await release.wait()
        running_now -= 1
        done.append(order.number)

    async with process(world, bus):
        await bus.publish_many([Ordered(number=number) for number in range(12)])
        await reached(world, lambda: running_now == 3, "three run")
        await world.wait(world.moment)
        release.set()
        await reached(world, lambda: len(done) == 12, "all are handled")
    assert most == 3


@case("bus")
async def a_slow_handler_keeps_its_lease(world: World) -> None:
    """A handler that runs for several leases is not disturbed: no other process gets its event, it succeeds once."""
    seen: list[str] = []

    def worker(name: str) -> Process:
        bus = application(world)

        @bus.on(Ordered, group="pack")
        async def pack(order: Ordered, about: Message) -> None:
            seen.append(name)
            await world.clock.sleep(3 * world.lease)
            seen.append(f"{name} {about.attempt}")

        return process(world, bus)

    async with worker("one") as running, worker("two"):
        await running.bus.publish(Ordered(number=1))
        await reached(world, lambda: len(seen) >= 2, "it is handled")
        await handled(world, running.engine, "pack")
    assert seen in (["one", "one 1"], ["two", "two 1"])


@case("bus")
async def cancelling_itself_is_a_failure(world: World) -> None:
    """A handler that ends with a `CancelledError` the worker did not ask for, be it that it cancels its own task, has
    failed: tried again, then a dead letter, never lost and never a hot loop."""
    attempts = 0
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(order: Ordered) -> None:
        nonlocal attempts
        attempts += 1
        task = asyncio.current_task()
        assert task is not None
        if order.number == 2:
            task.cancel()
            await asyncio.Event().wait()
        raise asyncio.CancelledError

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        await bus.publish(Ordered(number=2))
        both = await letters(world, running.engine, "pack", count=2)
    assert attempts == 2 * AT_ONCE.attempts
    assert [(letter.attempts, letter.failure.error) for letter in both] == [(AT_ONCE.attempts, "CancelledError")] * 2


@case("bus")
async def redriven_to_the_group_that_failed(world: World) -> None:
    """Redriven, a dead letter is handled by the group that failed, with a first attempt, and by no other group."""
    seen: list[str] = []
    broken = True
    bus = application(world)

    @bus.on(Ordered, group="pack")
    async def pack(about: Message) -> None:
        if broken:
            raise ValueError("broken")
        seen.append(f"pack {about.attempt}")

    @bus.on(Ordered, group="audit")
    async def audit(order: Ordered) -> None:
        seen.append("audit")

    async with process(world, bus) as running:
        await bus.publish(Ordered(number=1))
        found = await letters(world, running.engine, "pack")
        broken = False
        assert await running.engine.redrive(found) == 1
        await reached(world, lambda: len(seen) >= 2, "it is handled")
        await handled(world, running.engine, "pack", "audit")
        assert await running.engine.dead_letters() == []
    assert sorted(seen) == ["audit", "pack 1"]
