"""Outbox, relay and tables on real databases, SQLite files and a PostgreSQL server."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sql_app import App, key, message
from tidings.clock import ManualClock
from tidings.engine import Outgoing
from tidings.errors import ConfigError, DatabaseBehind
from tidings.sql import Migrations, Outbox, Tables
from tidings.unit import Turn

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)


@pytest_asyncio.fixture
async def app(database: Place) -> AsyncIterator[App]:
    made = await App.start(database)
    yield made
    await made.close()


class Calls(list[str]):
    def __call__(self) -> None:
        self.append("called")


async def test_staging_in_ones_own_session(app: App) -> None:
    """What is staged in an application's session is there after its commit, and the callback has come; after a
    rollback neither."""
    sessions = app.sessions
    calls = Calls()
    async with sessions() as session:
        await app.units.outbox(session).stage([message(1)], after_commit=calls)
        assert calls == []
        assert session.in_transaction()
        await session.rollback()
    assert (calls, (await app.units.committed([message(1)])).ready) == ([], [])
    async with sessions() as session:
        await app.units.outbox(session).stage([message(1), message(2, not_before=5.0)], after_commit=calls)
        await session.commit()
        assert calls == ["called"]
        assert (await app.units.committed([message(1), message(2), message(3)])).ready == [
            message(1),
            message(2, not_before=5.0),
        ]
        await session.execute(text("SELECT 1"))
        await session.commit()
    assert calls == ["called"]


async def test_a_savepoint_takes_back_what_was_staged_in_it(app: App) -> None:
    """The outer commit calls back, and `committed` has only what is really there."""
    calls = Calls()
    async with app.sessions() as session, session.begin():
        await app.units.outbox(session).stage([message(1)], after_commit=calls)
        savepoint = await session.begin_nested()
        await app.units.outbox(session).stage([message(2)], after_commit=calls)
        await savepoint.rollback()
        assert calls == []
    assert calls
    assert (await app.units.committed([message(1), message(2)])).ready == [message(1)]


async def test_staging_in_ones_own_connection(database: Place, app: App) -> None:
    """A plain async connection works like a session."""
    calls, engine = Calls(), database.engine()
    async with engine.begin() as connection:
        await app.units.outbox(connection).stage([message(1)], after_commit=calls)
    assert calls == ["called"]
    async with engine.connect() as connection:
        await app.units.outbox(connection).stage([message(2)], after_commit=calls)
    assert calls == ["called"]
    assert (await app.units.committed([message(1), message(2)])).ready == [message(1)]
    await engine.dispose()


async def test_staging_in_a_sync_session_and_connection(database: Place, app: App) -> None:
    """Sync applications stage without an event loop; the callback comes in their thread."""
    engine, threads = database.sync_engine(), []

    def work() -> int:
        with Session(engine) as session, session.begin():
            app.units.outbox(session).stage_sync([message(1)], lambda: threads.append(threading.get_ident()))
        with engine.begin() as connection:
            app.units.outbox(connection).stage_sync([message(2)], lambda: threads.append(threading.get_ident()))
        engine.dispose()
        return threading.get_ident()

    assert [await asyncio.to_thread(work)] * 2 == threads
    assert (await app.units.committed([message(1), message(2)])).ready == [message(1), message(2)]


async def test_a_callback_that_fails_harms_nobody(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """An error in the callback is logged; the application's commit has succeeded."""

    def fail() -> None:
        raise LookupError("no relay")

    async with app.sessions() as session:
        await app.units.outbox(session).stage([message(1)], after_commit=fail)
        await session.commit()
    assert "after a commit" in caplog.text
    assert (await app.units.committed([message(1)])).ready == [message(1)]


async def test_the_wrong_way_to_stage_is_refused(app: App) -> None:
    """`stage` wants an async session, `stage_sync` a sync one; each says so."""
    with pytest.raises(ConfigError, match="publish_sync"):
        await Outbox(Session()).stage([message(1)])
    with pytest.raises(ConfigError, match=r"await bus\.outbox"):
        Outbox(AsyncSession()).stage_sync([message(1)])


async def test_fresh_messages_are_left_to_their_process(app: App) -> None:
    """Right after the commit no relay gets a message, because its own process sends it; once sent it is gone."""
    await app.stage(1)
    assert await app.units.unsent(10) == []
    age = await app.units.oldest_unsent()
    assert age is not None
    assert 0 <= age < 10
    await app.units.mark_sent([message(1)])
    assert await app.units.oldest_unsent() is None


async def test_leftovers_come_back_whole_and_in_order(app: App) -> None:
    """A relay gets what a stopped process left, oldest first, with every field."""
    given = [message(3, not_before=17.5), message(1, headers={"ce-partitionkey": "k"}, body=b""), message(2)]
    async with app.units.begin(AsyncSession) as unit:
        await unit.stage(given)
        await unit.stage([message(1)])
        await unit.commit()
    await app.end_leases()
    assert await app.units.unsent(2) == given[:2]
    assert await app.units.unsent(2) == given[2:]
    assert await app.units.unsent(2) == []


async def test_a_lease_ends_with_time(sqlite: Place) -> None:
    """What nobody has sent within the lease is handed out again: 10 s after staging, 30 s after a relay took it."""
    clock = ManualClock()
    app = await App.start(sqlite, clock=clock)
    await app.stage(1)
    for lease in (10, 30):
        await clock.advance(lease - 0.5)
        assert await app.units.unsent(10) == []
        await clock.advance(0.5)
        assert await app.units.unsent(10) == [message(1)]
    assert await app.units.oldest_unsent() == 40
    await app.close()


async def test_relays_share_the_work(database: Place) -> None:
    """Relays that lease at the same time get different messages, all of them together."""
    relays = [await App.start(database) for _ in range(4)]
    await relays[0].stage(*range(100))
    await relays[0].end_leases()
    got: list[str] = []

    async def relay(app: App) -> None:
        while batch := await app.units.unsent(7):
            got.extend(m.id for m in batch)

    await asyncio.gather(*(relay(app) for app in relays))
    assert sorted(got) == sorted(f"m{n}" for n in range(100))
    for app in relays:
        await app.close()


async def test_a_slow_relay_cannot_take_out_what_another_has_taken_over(database: Place) -> None:
    """`mark_sent` after one's lease has gone to somebody else changes nothing."""
    slow, quick = await App.start(database), await App.start(database)
    await slow.stage(1)
    await slow.end_leases()
    assert await quick.units.unsent(10) == [message(1)]
    await slow.units.mark_sent([message(1)])
    assert await quick.count("tidings_outbox") == 1
    await quick.units.mark_sent([message(1)])
    assert await quick.count("tidings_outbox") == 0
    await slow.close()
    await quick.close()


async def test_pruning_forgets_the_old_and_keeps_the_rest(app: App) -> None:
    """Marks older than the limit go, over several batches; younger ones stay."""
    async with app.units.begin(AsyncSession) as unit:
        await unit.fresh([key(n) for n in range(2500)])
        await unit.connection.execute(text("UPDATE tidings_inbox SET handled_at = handled_at - 1000"))
        await unit.fresh([key(n) for n in range(2500, 2510)])
        await unit.commit()
    assert await app.units.prune_inbox(2000) == 0
    assert await app.units.prune_inbox(500) == 2500
    assert await app.count("tidings_inbox") == 10


async def test_sqlite_makes_its_tables_by_itself(sqlite: Place) -> None:
    """`prepare` on an empty SQLite file is all it takes, from several processes at once."""
    apps = [App(sqlite) for _ in range(4)]
    await asyncio.gather(*(app.units.prepare() for app in apps))
    assert (await apps[0].units.migrations.status()).pending == ()
    for one in apps:
        await one.close()


async def test_postgresql_without_tables_names_the_command(postgresql: Place) -> None:
    """`prepare` changes nothing on PostgreSQL: it raises and names the command."""
    app = App(postgresql)
    with pytest.raises(DatabaseBehind, match="tidings db upgrade") as caught:
        await app.units.prepare()
    assert "s3cr3t" not in str(caught.value)
    assert not app.units.transient(caught.value)
    await app.units.migrations.upgrade()
    await app.units.prepare()
    await app.close()


async def test_concurrent_upgrades_happen_once(database: Place) -> None:
    """Four processes that upgrade at the same time: one does it, the others wait and find nothing to do."""
    done = await asyncio.gather(*(Migrations(database.url).upgrade() for _ in range(4)))
    assert sorted(done) == [[], [], [], ["0001_inbox_outbox", "0002_outbox_order", "0003_epochs"]]
    status = await Migrations(database.url).status()
    assert (status.applied, status.pending) == (("0001_inbox_outbox", "0002_outbox_order", "0003_epochs"), ())


async def test_the_text_applied_by_hand_is_the_upgrade(database: Place) -> None:
    """`sql()` fed to the database by its own tools leaves nothing to upgrade."""
    migrations = Migrations(database.url)
    raw = database.sync_engine().raw_connection()
    assert raw.driver_connection is not None
    if database.kind == "sqlite":
        raw.driver_connection.executescript(migrations.sql())
    else:
        raw.driver_connection.autocommit = True
        raw.driver_connection.execute(migrations.sql())
    raw.detach()
    raw.close()
    assert await migrations.upgrade() == []


@pytest.mark.parametrize(
    ("tables", "outbox"), [(Tables("two_"), "two_outbox"), (Tables(schema="app"), "app.tidings_outbox")]
)
async def test_prefix_and_schema_keep_two_applications_apart(postgresql: Place, tables: Tables, outbox: str) -> None:
    """Two prefixes, or two schemas, in one database know nothing of each other."""
    one = await App.start(postgresql)
    two = await App.start(postgresql, tables=tables)
    for app in (one, two):
        async with app.units.begin(AsyncSession) as unit:
            assert await unit.fresh([key(1)]) == {key(1)}
            await unit.stage([message(1)])
            await unit.commit()
    await two.end_leases(outbox)
    assert await one.units.unsent(10) == []
    assert await two.units.unsent(10) == [message(1)]
    await two.units.mark_sent([message(1)])
    assert await two.units.oldest_unsent() is None
    assert await one.units.oldest_unsent() is not None
    assert await two.units.prune_inbox(-1) == 1
    for app in (one, two):
        await app.close()


def keyed(number: int, key: str = "k") -> Outgoing:
    return message(number, headers={"ce-partitionkey": key})


async def test_rows_with_a_key_leave_in_the_order_of_their_commits(postgresql: Place) -> None:
    """Of two transactions that stage on one key the one that commits first leaves first, whichever staged first; while
    its message is there, the other's is not handed out, nor to another relay."""
    first, second = await App.start(postgresql), await App.start(postgresql)
    async with first.units.begin(AsyncSession) as early, second.units.begin(AsyncSession) as late:
        await early.stage([keyed(1), keyed(2, "other")])
        await late.stage([keyed(3), keyed(4)])
        await late.commit()
        await early.commit()
    assert await second.units.committed([keyed(3), keyed(4)]) == Turn([keyed(3), keyed(4)], [])
    assert await first.units.committed([keyed(1), keyed(2, "other")]) == Turn([keyed(2, "other")], [keyed(1)])
    await first.end_leases()
    assert await first.units.unsent(1) == [keyed(3)]
    assert await second.units.unsent(10) == [keyed(2, "other")]  # 4 and 1 wait for 3, which is the other's
    await first.units.mark_sent([keyed(3)])
    assert await second.units.unsent(10) == [keyed(4), keyed(1)]
    await first.close()
    await second.close()


async def test_concurrent_commits_on_one_key_take_positions_in_their_order(postgresql: Place) -> None:
    """Forty transactions at once that stage first and take a row's lock afterwards: positions follow the row."""
    app = await App.start(postgresql, pool={"pool_size": 10, "max_overflow": 0})
    await app.sql("INSERT INTO items VALUES (1, 0)")
    dice = random.Random(7)

    async def work(number: int) -> int:
        async with app.sessions() as session, session.begin():
            await app.units.outbox(session).stage([keyed(number)])
            await asyncio.sleep(dice.uniform(0, 0.02))
            row = await session.execute(text("UPDATE items SET n = n + 1 WHERE id = 1 RETURNING n"))
            return int(row.scalar_one())

    turns = await asyncio.gather(*(work(number) for number in range(40)))
    order = await app.sql("SELECT message_id FROM tidings_outbox ORDER BY position")
    assert [name for (name,) in order] == [f"m{turns.index(turn)}" for turn in range(1, 41)]
    await app.close()


async def test_keys_of_one_transaction_are_locked_in_one_order(postgresql: Place) -> None:
    """Two transactions that stage the same two keys, one call each and the other way round, both commit: at the commit
    neither waits for a key of the other while it keeps one itself."""
    app = await App.start(postgresql)
    begun = asyncio.Barrier(2)

    async def work(turn: int, keys: str) -> None:
        async with app.sessions() as session, session.begin():
            for number, key in enumerate(keys):
                await app.units.outbox(session).stage([keyed(10 * turn + number, key)])
            await begun.wait()

    for turn in range(10):
        await asyncio.gather(work(2 * turn, "abcdefgh"), work(2 * turn + 1, "hgfedcba"))
    assert await app.sql("SELECT count(*) FROM tidings_outbox") == [(160,)]
    await app.close()


async def test_a_refused_message_holds_nobody_back(app: App) -> None:
    """What the engine does not take stays, with what it said, is left alone for a while, and its key goes on."""
    async with app.units.begin(AsyncSession) as unit:
        await unit.stage([keyed(1), keyed(2)])
        await unit.commit()
    await app.end_leases()
    assert await app.units.unsent(1) == [keyed(1)]
    await app.units.mark_refused(keyed(1), "too large")
    assert await app.units.unsent(10) == [keyed(2)]
    assert await app.sql("SELECT message_id, refused FROM tidings_outbox ORDER BY position") == [
        ("m1", "too large"),
        ("m2", None),
    ]
