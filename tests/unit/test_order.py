"""Groups with `order=True`, in one process on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

import tidings
from tidings import RetryLater, RetryPolicy
from tidings.clock import ManualClock
from tidings.engines.memory import MemoryEngine, MemoryStore
from tidings.order import explained
from tidings.testing import TestBus, attached
from workbench import until


class Step(tidings.Event, subject="events.step", key="item"):
    item: str
    n: int


def steps(items: str, count: int) -> list[Step]:
    return [Step(item=item, n=n) for n in range(count) for item in items]


async def connected(t: TestBus) -> MemoryEngine:
    """One more connection to the store."""
    engine = MemoryEngine(t.store)
    await engine.open()
    return engine


async def test_a_retry_is_waited_for_and_quiet_meanwhile() -> None:
    """While one waits for its next try the bus is quiet: later ones of its key are set aside, and follow it."""
    bus, seen = tidings.Bus("t"), list[tuple[str, int]]()

    @bus.on(Step, group="g", order=True, retry=RetryPolicy(attempts=3))
    async def handle(step: Step, about: tidings.Message) -> None:
        if (step.item, step.n) == ("a", 1) and about.attempt < 3:
            raise RetryLater(after=60)
        seen.append((step.item, step.n))

    async with TestBus(bus) as t:
        await bus.publish_many(steps("ab", 4))
        await t.settle()
        assert [n for item, n in seen if item == "a"] == [0]
        assert [n for item, n in seen if item == "b"] == [0, 1, 2, 3]
        assert t.store.stats().groups["g"].parked == 2
        await t.clock.advance(60)
        await t.settle()
        await t.clock.advance(60)
        await t.settle()
        assert [n for item, n in seen if item == "a"] == [0, 1, 2, 3]
        assert t.store.stats().groups["g"].pending == 0


@pytest.mark.parametrize("count", [4, 300])
async def test_a_short_pause_is_quiet_too(count: int) -> None:
    """`settle` does not wait for those that are kept in hand behind one that rests for less than a second, however many
    they are and whenever they came; they follow it in their order."""
    bus, seen, tries = tidings.Bus("t"), list[int](), 0

    @bus.on(Step, group="g", order=True, concurrency=2, retry=RetryPolicy(attempts=3))
    async def handle(step: Step) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RetryLater(after=0.9)
        seen.append(step.n)

    async with TestBus(bus) as t:
        await bus.publish_many(steps("a", count // 2))
        await t.settle(3)
        assert (tries, seen) == (1, [])
        await bus.publish_many([Step(item="a", n=n) for n in range(count // 2, count)])
        await t.settle(3)
        assert (tries, seen) == (1, [])
        await t.clock.advance(0.9)
        await t.settle(3)
        assert (tries, seen) == (2, [])
        await t.clock.advance(0.9)
        await t.settle(3)
        assert seen == list(range(count))
        assert t.store.stats().groups["g"].pending == 0


async def test_what_rests_shortly_goes_back_when_its_worker_stops() -> None:
    """A worker that stops hands back at once what rests for less than a second, and what waits behind it."""
    bus = tidings.Bus("t")

    @bus.on(Step, group="g", order=True)
    async def handle(step: Step) -> None:
        raise RetryLater(after=0.9)

    async with TestBus(bus, groups=[]) as t, attached(bus, await connected(t), t.clock) as running:
        worker = await running.work()
        await bus.publish_many(steps("a", 3))
        await until(lambda: len(worker.resting) == 3)
        async with asyncio.timeout(5):
            await worker.stop()
        assert t.store.stats().groups["g"].waiting == 3


async def test_what_is_parked_is_explained_to_its_end() -> None:
    """Of a message that is set aside people are told what it waits for, and what that waits for: here a dead letter,
    by the name that `tidings dlq` takes, and one that rests."""
    bus = tidings.Bus("t")

    @bus.on(Step, group="g", order=True, retry=RetryPolicy(attempts=2, first=60, most=60))
    async def handle(step: Step) -> None:
        raise tidings.Reject("no such item") if step.item == "a" else ValueError("not today")

    async def told(position: int) -> str:
        [entry] = await engine.read([">"], position - 1, 1)
        return (await explained(engine, "g", (await engine.states(entry))["g"])).detail

    async with TestBus(bus) as t:
        engine = await connected(t)
        await bus.publish_many(steps("ab", 2))
        await t.settle()
        assert await told(3) == "behind 1, which is dead (`tidings dlq show g/1`): rejected: Reject: no such item"
        assert (await told(4)).startswith("behind 2, which is retrying: not before ")
        assert (await told(2)).startswith("not before ")


async def test_a_thousand_of_one_key_are_in_order_at_full_concurrency() -> None:
    """Concurrency is across keys; one key never has two running, and nothing is lost or doubled."""
    bus, seen, now = tidings.Bus("t"), dict[str, list[int]](), set[str]()

    @bus.on(Step, group="g", order=True, concurrency=8)
    async def handle(step: Step) -> None:
        assert step.item not in now
        now.add(step.item)
        await t.clock.sleep(0)
        seen.setdefault(step.item, []).append(step.n)
        now.discard(step.item)

    async with TestBus(bus) as t:
        await bus.publish_many(steps("abcde", 200))
        await t.settle()
    assert seen == {item: list(range(200)) for item in "abcde"}


async def test_pausing_holds_what_is_in_hand() -> None:
    """A paused ordered group begins nothing, not even what it has in hand, and goes on when it is resumed."""
    bus, seen, broken = tidings.Bus("t"), list[int](), True

    @bus.on(Step, group="g", order=True, retry=RetryPolicy(attempts=9, first=60, most=60))
    async def handle(step: Step) -> None:
        seen.append(step.n)
        if broken:
            raise ValueError("again")

    async with TestBus(bus) as t:
        await bus.publish(Step(item="a", n=7))
        await t.settle()
        engine = await connected(t)
        await tidings.claims.change(engine, "g", paused=True)
        await t.clock.advance(2)
        before = len(seen)
        await t.clock.advance(600)
        assert len(seen) == before
        broken = False
        await tidings.claims.change(engine, "g", paused=False)
        await t.clock.advance(60)
        await t.settle()
        assert t.store.stats().groups["g"].pending == 0
    assert len(seen) == before + 1


async def test_a_worker_without_order_is_refused_where_there_is_order() -> None:
    """A handler that no longer asks for order does not start beside those that keep it; the error names the command."""
    bus, other = tidings.Bus("t"), tidings.Bus("t")

    @bus.on(Step, group="g", order=True)
    async def handle(step: Step) -> None: ...

    @other.on(Step, group="g")
    async def unordered(step: Step) -> None: ...

    async with TestBus(bus) as t, attached(other, await connected(t), t.clock) as running:
        with pytest.raises(tidings.ConfigError, match="tidings groups unorder g"):
            await running.work()


async def test_a_message_that_never_comes_holds_up_its_key_for_some_leases_only() -> None:
    """What an engine says it has put back, and has not, is found by the worker itself: it begins anew, and goes on."""

    class Forgetful(MemoryEngine):
        forgot = 0

        async def unpark(self, group: str, positions: Sequence[int]) -> int:
            if self.forgot:
                return await super().unpark(group, positions)
            self.forgot = len(positions)
            return self.forgot

    bus, seen = tidings.Bus("t"), list[int]()

    @bus.on(Step, group="g", order=True, retry=RetryPolicy(attempts=3))
    async def handle(step: Step, about: tidings.Message) -> None:
        if step.n == 0 and about.attempt == 1:
            raise RetryLater(after=60)
        seen.append(step.n)

    clock = ManualClock()
    store = MemoryStore(clock)
    engine = Forgetful(store)
    await engine.open()
    async with attached(bus, engine, clock) as running:
        await running.work()
        await bus.publish_many(steps("a", 3))
        await until(lambda: store.stats().groups["g"].parked == 2)
        await clock.advance(60)
        await until(lambda: engine.forgot == 2)
        assert seen == [0]
        async with asyncio.timeout(10):
            while seen != [0, 1, 2]:
                await clock.advance(1)
    await engine.close()
