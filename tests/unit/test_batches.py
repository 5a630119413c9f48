"""Batch handlers: what waits in one call, and an outcome for each message."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import tidings
from handlers import AT_ONCE, New, Saved, items, new_bus
from tidings import Batch, ConfigError
from tidings.testing import TestBus


class Shop:
    """What a provider offers."""


def news(count: int) -> list[New]:
    return [New(str(number)) for number in range(count)]


async def test_what_waits_comes_in_one_call() -> None:
    """A hundred waiting messages are a few calls, each in the log's order; a single one comes alone, and at once."""
    bus, calls = new_bus(), []

    @bus.on(New, group="save")
    async def save(batch: Batch[New]) -> None:
        calls.append([new.item for new in batch])
        assert [message.data for message in batch.messages] == list(batch)
        assert batch[0].item == calls[-1][0]

    async with TestBus(bus) as t:
        await bus.publish_many(news(100))
        await t.settle()
        assert sorted((item for call in calls for item in call), key=int) == [new.item for new in news(100)]
        assert all(call == sorted(call, key=int) for call in calls)
        assert len(calls) < 10
        calls.clear()
        await bus.publish(New("alone"))
        await t.settle()
    assert calls == [["alone"]]


async def test_a_batch_has_a_size() -> None:
    """`batch=10` gives no call more than ten."""
    bus, sizes = new_bus(), []

    @bus.on(New, group="save", batch=10)
    async def save(batch: Batch[New]) -> None:
        sizes.append(len(batch))

    async with TestBus(bus) as t:
        await bus.publish_many(news(100))
        await t.settle()
    assert max(sizes) == 10
    assert sum(sizes) == 100


async def test_one_that_is_failed_is_retried_and_the_others_are_done() -> None:
    """`fail` gives one message its retries and its dead letter with what was said; no other is called again."""
    bus, seen = new_bus(), []

    @bus.on(New, group="save")
    async def save(batch: Batch[New]) -> None:
        for index, new in enumerate(batch):
            seen.append((new.item, batch.messages[index].attempt))
            if new.item == "7":
                batch.fail(index, ValueError("not this one"))

    async with TestBus(bus) as t:
        await bus.publish_many(news(20))
        await t.settle()
        (letter,) = await t.dead_letters()
    assert (letter.failure.error, letter.failure.message, letter.attempts) == ("ValueError", "not this one", 3)
    assert sorted(seen, key=lambda pair: (int(pair[0]), pair[1])) == sorted(
        [(str(number), 1) for number in range(20)] + [("7", 2), ("7", 3)], key=lambda pair: (int(pair[0]), pair[1])
    )


async def test_retry_later_and_reject_work_for_one() -> None:
    """`fail` takes `Reject` and `RetryLater` as a handler may raise them."""
    bus, attempts = new_bus(), []

    @bus.on(New, group="save")
    async def save(batch: Batch[New]) -> None:
        for index, new in enumerate(batch):
            if new.item == "1":
                batch.fail(index, tidings.Reject("no"))
            if new.item == "2":
                attempts.append(batch.messages[index].attempt)
                if attempts == [1]:
                    batch.fail(index, tidings.RetryLater(after=0))

    async with TestBus(bus) as t:
        await bus.publish_many(news(5))
        await t.settle()
        assert [letter.reason for letter in await t.dead_letters()] == ["rejected"]
    assert attempts == [1, 2]


async def test_follow_ups_belong_to_their_message() -> None:
    """An event given to `follow` has its message as its cause; of a failed message none leaves."""
    bus = new_bus()

    @bus.on(New, group="save", retry=tidings.NEVER)
    async def save(batch: Batch[New]) -> None:
        for index, new in enumerate(batch):
            batch.follow(index, Saved(new.item), Saved(f"{new.item} again"))
            if new.item == "1":
                batch.fail(index, ValueError())

    async with TestBus(bus) as t:
        receipts = await bus.publish_many(news(3))
        await t.settle()
        saved = await t.published("events.saved")
    assert [(m.data["item"], m.causation_id) for m in saved] == [
        ("0", receipts[0].id),
        ("0 again", receipts[0].id),
        ("2", receipts[2].id),
        ("2 again", receipts[2].id),
    ]


async def test_an_exception_is_found_out_one_by_one() -> None:
    """When a handler without a transaction raises, each message is handled by itself: the guilty one alone loses
    attempts, and no other is repeated more than once."""
    bus = new_bus()
    done: set[tuple[str, int]] = set()
    calls: Counter[str] = Counter()

    @bus.on(New, group="save")
    async def save(batch: Batch[New]) -> None:
        calls.update(new.item for new in batch)
        if "13" in [new.item for new in batch]:
            raise ValueError("thirteen")
        done.update((new.item, message.attempt) for new, message in zip(batch, batch.messages, strict=True))

    async with TestBus(bus) as t:
        await bus.publish_many(news(50))
        await t.settle()
        (letter,) = await t.dead_letters()
    assert letter.failure.message == "thirteen"
    assert done == {(str(number), 1) for number in range(50) if number != 13}
    del calls["13"]
    assert max(calls.values()) == 2


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
async def test_an_exit_or_a_foreign_cancel_is_a_failure(error: type[BaseException]) -> None:
    """`sys.exit` and a `CancelledError` that nobody asked for neither end the worker nor lose a message."""
    bus = new_bus()

    @bus.on(New, group="save")
    async def save(batch: Batch[New]) -> None:
        if len(batch) > 1 or batch[0].item == "1":
            raise error

    async with TestBus(bus) as t:
        await bus.publish_many(news(3))
        await t.settle()
        assert len(await t.dead_letters()) == 1


async def test_a_batch_that_cancels_its_own_task_is_tried_singly() -> None:
    """The guilty one alone fails, attempt by attempt; the others are handled."""
    bus = new_bus()
    done: set[str] = set()

    @bus.on(New, group="save")
    async def save(batch: Batch[New]) -> None:
        if "1" in [new.item for new in batch]:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()
        done.update(new.item for new in batch)

    async with TestBus(bus) as t:
        await bus.publish_many(news(3))
        await t.settle()
        [letter] = await t.dead_letters()
    assert (letter.attempts, letter.failure.error) == (3, "CancelledError")
    assert done == {"0", "2"}


async def test_a_batch_that_hangs_is_timed_out_singly() -> None:
    """The time limit holds for a batch; afterwards each message has it for itself."""
    bus, done = new_bus(), []

    @bus.on(New, group="save", timeout=2, retry=tidings.NEVER)
    async def save(batch: Batch[New]) -> None:
        if "1" in [new.item for new in batch]:
            await asyncio.Event().wait()
        done.append(batch[0].item)

    async with TestBus(bus) as t:
        await bus.publish_many(news(3))
        while not (letters := await t.dead_letters()):
            await asyncio.sleep(0.01)
            await t.clock.advance(1)
        await t.settle()
    assert [letter.reason for letter in letters] == ["timeout"]
    assert sorted(done) == ["0", "2"]


async def test_plain_functions_and_other_parameters() -> None:
    """A plain `def` takes a batch too, with what a provider offers, of untyped messages too."""
    bus = new_bus()
    seen: list[tuple[str, type]] = []

    @bus.provide
    def shop() -> Shop:
        return Shop()

    @bus.on("events.>", group="audit")
    def audit(batch: Batch, given: Shop) -> None:
        seen.extend((message.subject, type(given)) for message in batch.messages)

    async with TestBus(bus) as t:
        await bus.publish_many(news(3))
        await t.settle()
    assert seen == [("events.new", Shop)] * 3


def test_a_batch_for_a_test_of_the_function() -> None:
    """`Batch.of` makes one out of events; what a handler said is there to be looked at."""
    batch = Batch.of(New("a"), New("b"))
    batch.follow(0, Saved("a"))
    batch.fail(1, ValueError("b"))
    assert ([new.item for new in batch], len(batch)) == (["a", "b"], 2)
    assert batch.follow_ups == {0: [Saved("a")]}
    assert list(batch.failures) == [1]
    with pytest.raises(IndexError, match="message 2 of a batch of 2"):
        batch.fail(2, ValueError())
    with pytest.raises(TypeError, match="takes an exception"):
        batch.fail(0, "no")  # type: ignore[arg-type]


async def refused(bus: tidings.Bus, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        async with TestBus(bus):
            pass


async def test_mistakes_are_told_at_start() -> None:
    """A batch beside an event, a size without a batch, and batches of requests raise with the handler's name."""
    bus = new_bus()

    @bus.on(New, group="save")
    async def both(batch: Batch[New], new: New) -> None: ...

    await refused(bus, "both: new is one too many")
    bus = new_bus()

    @bus.on(New, group="save", batch=5)
    async def single(new: New) -> None: ...

    await refused(bus, "single: batch=5: no parameter of it is a Batch")
    with pytest.raises(ConfigError, match="batch=0: a whole number, at least 1"):
        new_bus().on(New, group="save", batch=0)(single)
    bus = new_bus()

    @bus.listen("live.>")
    async def hear(batch: Batch) -> None: ...

    await refused(bus, "one at a time")


async def test_what_a_batch_handler_returns_is_refused() -> None:
    """Returned events would follow from no message in particular: the error names `follow`."""
    bus = new_bus()

    @bus.on(New, group="save", retry=tidings.NEVER)
    async def save(batch: Batch[New]) -> Any:
        return Saved("x")

    async with TestBus(bus) as t:
        await bus.publish_many(news(2))
        await t.settle()
        letters = await t.dead_letters()
        assert await items(t, "events.saved") == []
    assert [letter.failure.error for letter in letters] == ["TypeError"] * 2
    assert "batch.follow(i, event)" in letters[0].failure.message
    assert AT_ONCE.attempts == 3
