"""Messages that always fail among many that do not, on SQLite and PostgreSQL: what they cost the others, and whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, event, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

import tidings
from items import Base, Item, New, Saved
from tidings.delivery import Outcome, RetryAfter
from tidings.sql import units_for
from tidings.testing import TestBus
from tidings.work.worker import Worker

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

MANY = 256
AT_ONCE = tidings.RetryPolicy(attempts=3, first=0, most=0)


class Shop:
    """A bus on a database of its own, and what became of its messages."""

    def __init__(self, place: Place) -> None:
        self.engine = place.engine()
        self.sessions = async_sessionmaker(self.engine)
        self.bus = tidings.Bus("shop", sessions=self.sessions, settings=tidings.Settings(retry=AT_ONCE, timeout=60))
        self.attempts: defaultdict[int, list[int]] = defaultdict(list)
        """By number, of each run of its handler."""
        self.retried: set[int] = set()
        self.letters: list[int] = []
        self.saved: list[Any] = []
        self.commits = 0

    async def start(self) -> None:
        await units_for(self.sessions).migrations.upgrade()
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        event.listen(self.engine.sync_engine, "commit", self._committed)

    def ran(self, message: tidings.Message[New]) -> int:
        self.attempts[message.data.number].append(message.attempt)
        return message.data.number

    async def handle(self, numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
        """Publish them at once, wait until nothing is left to be done."""
        start = Worker.start

        def listening(worker: Worker) -> None:
            told = worker._hands.on_settled

            def settled(outcomes: Any) -> None:
                self._settled(outcomes)
                told(outcomes)

            worker._hands.on_settled = settled
            start(worker)

        monkeypatch.setattr(Worker, "start", listening)
        async with TestBus(self.bus) as t:
            self.commits = 0
            await self.bus.publish_many([New(number=number) for number in numbers])
            await t.settle(60)
            self.letters = sorted(_number(letter.entry.body) for letter in await t.dead_letters())
            self.saved = [message.data for message in await t.published("events.saved")]

    def _settled(self, outcomes: list[Outcome]) -> None:
        self.retried |= {_number(one.delivery.entry.body) for one in outcomes if isinstance(one, RetryAfter)}

    async def numbers(self) -> list[int]:
        async with self.sessions() as session:
            return list((await session.execute(select(Item.number).order_by(Item.number))).scalars())

    def _committed(self, connection: Connection) -> None:
        self.commits += 1


def _number(body: bytes) -> int:
    return int(body.removeprefix(b'{"number":').removesuffix(b"}"))


@pytest_asyncio.fixture
async def shop(database: Place) -> AsyncIterator[Shop]:
    shop = Shop(database)
    await shop.start()
    yield shop
    await shop.engine.dispose()


@pytest.mark.parametrize("kind", ["raises before", "raises behind its flush", "is refused", "reads and raises"])
async def test_one_among_256_costs_the_others_nothing(shop: Shop, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message always fails, whatever its handler does before: of the other 255 none becomes a dead letter, none is
    retried, each is saved once and has its follow-up, and the handler runs at most three times for it."""

    @shop.bus.on(New, group="save")
    async def save(new: New, message: tidings.Message[New], db: AsyncSession) -> Saved:
        bad = shop.ran(message) == 50
        if bad and kind == "raises before":
            raise ValueError("poison")
        if kind == "reads and raises":
            await db.execute(select(func.count()).select_from(Item))
        item = Item(number=None if bad and kind == "is refused" else new.number)
        db.add(item)
        await db.flush()
        if bad:
            raise ValueError("poison")
        return Saved(number=new.number, id=item.id)

    await shop.handle(range(MANY), monkeypatch)
    good = [number for number in range(MANY) if number != 50]
    assert shop.letters == [50]
    assert shop.retried == {50}
    assert set(shop.attempts.pop(50)) == {1, 2, 3}
    assert {attempt for attempts in shop.attempts.values() for attempt in attempts} == {1}
    assert max(map(len, shop.attempts.values())) <= 3
    assert await shop.numbers() == sorted(saved.number for saved in shop.saved) == good
    assert len({saved.id for saved in shop.saved}) == len(good)


@pytest.mark.parametrize("kind", ["raises behind its flush", "is refused", "reads and raises"])
async def test_many_share_the_transactions_of_the_others(
    shop: Shop, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When each eighth message always fails, with three attempts each, there are still a few commits only, and the
    others are saved at their first attempt."""

    @shop.bus.on(New, group="save")
    async def save(new: New, message: tidings.Message[New], db: AsyncSession) -> None:
        bad = shop.ran(message) % 8 == 5
        if kind == "reads and raises":
            await db.execute(select(func.count()).select_from(Item))
        db.add(Item(number=None if bad and kind == "is refused" else new.number))
        await db.flush()
        if bad:
            raise ValueError("poison")

    await shop.handle(range(MANY), monkeypatch)
    bad = [number for number in range(MANY) if number % 8 == 5]
    assert shop.letters == sorted(shop.retried) == bad
    assert all(set(shop.attempts.pop(number)) == {1, 2, 3} for number in bad)
    assert {attempt for attempts in shop.attempts.values() for attempt in attempts} == {1}
    assert await shop.numbers() == [number for number in range(MANY) if number not in bad]
    assert shop.commits < MANY / 4


async def test_what_recovers_shares_a_transaction_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """All fail once, and succeed the next time: together."""

    @shop.bus.on(New, group="save")
    async def save(new: New, message: tidings.Message[New], db: AsyncSession) -> None:
        shop.ran(message)
        db.add(Item(number=new.number))
        await db.flush()
        if message.attempt == 1:
            raise ValueError("not yet")

    await shop.handle(range(MANY), monkeypatch)
    assert shop.letters == []
    assert await shop.numbers() == list(range(MANY))
    assert shop.commits < MANY / 4


async def test_a_failure_counts_only_if_what_was_read_stands(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler fails because of what another message has written, which is then taken back: that costs it no attempt,
    and it succeeds."""

    @shop.bus.on(New, group="save", retry=tidings.NEVER)
    async def save(new: New, message: tidings.Message[New], db: AsyncConnection) -> None:
        number = shop.ran(message)
        if number == 2 and (await db.execute(select(Item.id).where(Item.number == 1))).all():
            raise ValueError("1 is there")
        await db.execute(insert(Item).values(number=number))
        if number == 1 and len(shop.attempts[1]) > 2:
            raise ValueError("1 ends badly after all")

    await shop.handle(range(10), monkeypatch)
    assert shop.letters == [1]
    assert await shop.numbers() == [0, *range(2, 10)]


@pytest.mark.parametrize("flushes", [True, False])
async def test_a_swallowed_refusal_costs_its_message_only(
    shop: Shop, flushes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers that have read and then swallow what the database says of their row, among others that fail openly: they
    are dead letters with nothing committed of them, and everybody else is saved once, with its follow-up."""
    swallow, bad = {20, 37, 90}, {3, 50, 120}

    @shop.bus.on(New, group="save", retry=tidings.NEVER)
    async def save(new: New, message: tidings.Message[New], db: AsyncSession) -> Saved:
        number = shop.ran(message)
        await db.execute(select(func.count()).select_from(Item))
        db.add(Item(number=1000 + number))
        item = Item(number=0 if number in swallow else number)
        db.add(item)
        try:
            await db.flush()
        except IntegrityError:
            if flushes:
                return Saved(number=number, id=0)
            raise
        if number in bad:
            raise ValueError("poison")
        return Saved(number=number, id=item.id)

    await shop.handle(range(128), monkeypatch)
    good = [number for number in range(128) if number not in swallow | bad]
    assert shop.letters == sorted(swallow | bad)
    assert await shop.numbers() == good + [1000 + number for number in good]
    assert sorted(saved.number for saved in shop.saved) == good
