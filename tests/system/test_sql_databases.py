"""The unit of work on real databases, SQLite files and a PostgreSQL server: what it promises when all goes well."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from tidings.clock import ManualClock
from tidings.engine import Outgoing
from tidings.errors import ConfigError, DatabaseBehind
from tidings.sql import Migrations, Outbox, SqlUnits
from tidings.unit import InboxKey

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

BOTH_ASYNC = (AsyncSession, AsyncConnection)
BOTH_SYNC = (Session, Connection)


def message(number: int, **changes: Any) -> Outgoing:
    return Outgoing(
        **{"subject": "events.a", "body": b"\x00\xff{}", "headers": {"ce-type": "ä"}, "id": f"m{number}", **changes}
    )


def key(number: int, group: str = "g") -> InboxKey:
    return InboxKey(group, "events.a", f"m{number}")


async def prepared(place: Place, *, sync: bool = False, **options: Any) -> SqlUnits:
    """Units on an empty database with the framework's tables and one of the application's."""
    async with place.engine().begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS items (id integer PRIMARY KEY, n integer NOT NULL)"))
        engine = connection.engine
    await engine.dispose()
    units = SqlUnits(sessionmaker(place.sync_engine()) if sync else async_sessionmaker(place.engine()), **options)
    await units.migrations.upgrade()
    await units.prepare()
    return units


async def finished(units: SqlUnits) -> None:
    engine = units._database.engine
    await units.close()
    if engine.dialect.is_async:
        from sqlalchemy.ext.asyncio import AsyncEngine

        await AsyncEngine(engine).dispose()
    else:
        await asyncio.to_thread(engine.dispose)


@pytest_asyncio.fixture
async def units(database: Place) -> AsyncIterator[SqlUnits]:
    made = await prepared(database)
    yield made
    await finished(made)


@pytest_asyncio.fixture
async def sync_units(database: Place) -> AsyncIterator[SqlUnits]:
    made = await prepared(database, sync=True)
    yield made
    await finished(made)


async def count(units: SqlUnits, table: str) -> int:
    def rows(connection: Connection) -> int:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())

    return await units._database.run(rows)


async def insert(unit: Any, number: int) -> None:
    """What a handler does, on whatever it was given."""
    statement = text("INSERT INTO items (id, n) VALUES (:id, 0)"), {"id": number}
    await unit.run(lambda: unit.connection.execute(*statement))


def either(sync: bool, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("sync_units" if sync else "units")


ANNOTATIONS = pytest.mark.parametrize("annotation", [*BOTH_ASYNC, *BOTH_SYNC])


@pytest.fixture
def given(annotation: type, request: pytest.FixtureRequest) -> SqlUnits:
    """Units whose handlers may ask for `annotation`."""
    made: SqlUnits = request.getfixturevalue("sync_units" if annotation in BOTH_SYNC else "units")
    return made


# --- one transaction ----------------------------------------------------------------------------------------------


@ANNOTATIONS
async def test_effect_mark_and_follow_up_commit_together(given: SqlUnits, annotation: type) -> None:
    """After a commit the row, the inbox mark and the staged message are there; a redelivery is known."""
    async with given.begin(annotation) as unit:
        assert isinstance(unit.connection, annotation)
        assert await unit.fresh([key(1)]) == {key(1)}
        await insert(unit, 1)
        await unit.stage([message(1)])
        assert await unit.run(threading.get_ident) is not None
        await unit.commit()
    async with given.begin(annotation) as unit:
        assert await unit.fresh([key(1), key(2), key(1, "other")]) == {key(2), key(1, "other")}
    assert await count(given, "items") == 1
    assert await count(given, "tidings_outbox") == 1


@ANNOTATIONS
@pytest.mark.parametrize("how", ["raise", "leave", "rollback"])
async def test_without_a_commit_nothing_is_left(given: SqlUnits, annotation: type, how: str) -> None:
    """A handler that raises, or a unit that is left or rolled back, leaves no effect, no mark and no message."""

    async def attempt() -> None:
        async with given.begin(annotation) as unit:
            assert await unit.fresh([key(1)]) == {key(1)}
            await insert(unit, 1)
            await unit.stage([message(1)])
            if how == "raise":
                raise LookupError("the handler failed")
            if how == "rollback":
                await unit.rollback()
                await unit.rollback()

    if how == "raise":
        with pytest.raises(LookupError):
            await attempt()
    else:
        await attempt()
    assert [await count(given, f"{table}") for table in ("items", "tidings_inbox", "tidings_outbox")] == [0, 0, 0]
    async with given.begin(annotation) as unit:
        assert await unit.fresh([key(1)]) == {key(1)}


async def test_many_keys_at_once(units: SqlUnits) -> None:
    """A group of messages is checked in one statement, doubles in it included."""
    keys = [key(n) for n in range(1500)]
    async with units.begin(AsyncSession) as unit:
        assert await unit.fresh(keys[:500]) == set(keys[:500])
        assert await unit.fresh([*keys, *keys]) == set(keys[500:])
        assert await unit.fresh([]) == set()
        await unit.commit()


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_fresh_waits_for_another_transaction_with_the_same_message(postgresql: Place, ending: str) -> None:
    """Two workers with one message: the second waits, then skips it, or has it if the first rolled back."""
    units = await prepared(postgresql)
    async with units.begin(AsyncSession) as first, units.begin(AsyncSession) as second:
        assert await first.fresh([key(1)]) == {key(1)}
        waiting = asyncio.create_task(second.fresh([key(1)]))
        await blocked(units)
        assert not waiting.done()
        await getattr(first, ending)()
        assert await waiting == (set() if ending == "commit" else {key(1)})
    await finished(units)


async def blocked(units: SqlUnits) -> None:
    """Wait until some session of the database waits for a lock."""
    waits = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(10):
        while not await units._database.run(lambda connection: connection.execute(waits).scalar_one()):
            pass


async def test_workers_with_overlapping_messages_never_deadlock(postgresql: Place) -> None:
    """Keys are marked in one order, so that groups of messages in opposite orders wait and never deadlock."""
    units = await prepared(postgresql)
    marked: list[InboxKey] = []

    async def work(turn: int) -> None:
        keys = [key(n) for n in range(turn, turn + 200)]
        async with units.begin(AsyncSession) as unit:
            fresh = await unit.fresh(keys if turn % 2 else keys[::-1])
            await unit.commit()
            marked.extend(fresh)

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(turn) for turn in range(12)))
    assert sorted(marked) == [*sorted(key(n) for n in range(211))]
    await finished(units)


async def test_a_sync_handler_runs_in_the_thread_of_its_session(sync_units: SqlUnits) -> None:
    """Two units at a time have a thread each, neither of them the event loop's, and each keeps its own."""

    async def idents() -> set[int]:
        async with sync_units.begin(Session) as unit:
            return {await unit.run(threading.get_ident) for _ in range(3)}

    if sync_units._database.dialect.one_writer:
        assert len(await idents()) == 1
        assert threading.get_ident() not in await idents()
        return
    async with sync_units.begin(Session) as one, sync_units.begin(Session) as other:
        seen = [await one.run(threading.get_ident), await other.run(threading.get_ident), threading.get_ident()]
        assert len(set(seen)) == 3
        assert await one.run(threading.get_ident) == seen[0]


async def test_cancelling_a_sync_handler_waits_for_its_end_and_rolls_back(sync_units: SqlUnits) -> None:
    """A thread cannot be stopped: a cancelled unit waits for the handler, then rolls back and gives the session up."""
    started, let_go, ended = threading.Event(), threading.Event(), []

    async def attempt() -> None:
        async with sync_units.begin(Session) as unit:
            await unit.fresh([key(1)])

            def handler() -> None:
                unit.connection.execute(text("INSERT INTO items VALUES (1, 0)"))
                started.set()
                let_go.wait(10)
                ended.append(True)

            await unit.run(handler)

    task = asyncio.create_task(attempt())
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert await count(sync_units, "items") == 0


async def test_run_awaits_an_async_function_with_the_callers_context(units: SqlUnits) -> None:
    """On an async unit `run` is a call, awaited if need be."""
    who = contextvars.ContextVar("who", default="nobody")
    who.set("me")

    async def handler(prefix: str) -> str:
        return prefix + who.get()

    async with units.begin(AsyncSession) as unit:
        assert await unit.run(handler, "it is ") == "it is me"


# --- whose transaction it is --------------------------------------------------------------------------------------


@ANNOTATIONS
@pytest.mark.parametrize("method", ["commit", "rollback", "close", "begin"])
async def test_a_handler_cannot_end_the_transaction(given: SqlUnits, annotation: type, method: str) -> None:
    """`commit()` and its like raise with what to do instead, and the unit goes on as if nothing had been said."""
    async with given.begin(annotation) as unit:
        await insert(unit, 1)

        def call() -> Any:
            result = getattr(unit.connection, method)()
            return result.__aenter__() if method == "begin" and annotation in BOTH_ASYNC else result

        with pytest.raises(ConfigError, match=r"the worker commits when the handler returns"):
            await unit.run(call)
        await insert(unit, 2)
        await unit.commit()
    assert await count(given, "items") == 2


async def test_the_connection_behind_a_session_cannot_end_it_either(units: SqlUnits) -> None:
    """Going through `session.connection()` or `session.sync_session` leads to the same refusal."""
    async with units.begin(AsyncSession) as unit:
        with pytest.raises(ConfigError, match="the worker commits"):
            await (await unit.connection.connection()).commit()
        with pytest.raises(ConfigError, match="the worker commits"):
            await unit.connection.run_sync(lambda session: session.rollback())
        with pytest.raises(ConfigError, match="the worker commits"):
            async with unit.connection:
                pass
        await unit.commit()


async def test_savepoints_are_the_handlers_own(units: SqlUnits) -> None:
    """`begin_nested()` works: what it rolls back is gone, what stands around it commits."""
    async with units.begin(AsyncSession) as unit:
        session: AsyncSession = unit.connection
        await insert(unit, 1)
        with pytest.raises(LookupError):
            async with session.begin_nested():
                await insert(unit, 2)
                raise LookupError
        async with session.begin_nested():
            await insert(unit, 3)
        await unit.commit()
    assert await count(units, "items") == 2


async def test_savepoints_of_a_sync_session_are_the_handlers_own(sync_units: SqlUnits) -> None:
    """`begin_nested()` works on a sync session and on its connection."""
    for number, annotation in enumerate(BOTH_SYNC):
        async with sync_units.begin(annotation) as unit:

            def handler() -> None:
                with unit.connection.begin_nested():
                    unit.connection.execute(text("INSERT INTO items VALUES (:n, 0)"), {"n": number})  # noqa: B023

            await unit.run(handler)
            await unit.commit()
    assert await count(sync_units, "items") == 2


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
async def test_ending_the_transaction_as_sql_is_noticed(units: SqlUnits, word: str) -> None:
    """A handler that says COMMIT in SQL fails at the worker's commit instead of losing its follow-ups quietly."""
    async with units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        connection = await unit.connection.connection()
        raw = (await connection.get_raw_connection()).driver_connection
        await raw.execute(word)
        with pytest.raises(ConfigError, match="ended inside the handler"):
            await unit.commit()
    assert await count(units, "tidings_inbox") == 0


async def test_an_error_that_the_handler_swallowed_cannot_commit_half(units: SqlUnits) -> None:
    """PostgreSQL answers COMMIT with a silent rollback after an error; the unit raises. SQLite keeps the rest."""
    async with units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        with pytest.raises(Exception, match=r"(?i)unique"):
            await insert(unit, 1)
        if units._database.engine.dialect.name == "sqlite":
            await unit.commit()
        else:
            with pytest.raises(Exception, match="current transaction is aborted") as caught:
                await unit.commit()
            assert not units.transient(caught.value)
    assert await count(units, "items") == (units._database.engine.dialect.name == "sqlite")


async def test_an_error_inside_a_savepoint_harms_nothing(units: SqlUnits) -> None:
    """A failed part in a savepoint leaves the rest of the transaction to commit."""
    async with units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        with pytest.raises(Exception, match=r"(?i)unique"):
            async with unit.connection.begin_nested():
                await insert(unit, 1)
        await unit.commit()
    assert await count(units, "items") == 1


async def test_an_engine_without_transactions_is_refused(database: Place) -> None:
    """An engine in AUTOCOMMIT would keep half of a failed handler; PostgreSQL's is refused at the begin."""
    await finished(await prepared(database))
    units = SqlUnits(database.engine(isolation_level="AUTOCOMMIT"))
    if database.kind == "sqlite":  # our BEGIN IMMEDIATE makes a transaction all the same
        async with units.begin(AsyncSession) as unit:
            await insert(unit, 1)
        assert await count(units, "items") == 0
    else:
        with pytest.raises(ConfigError, match="AUTOCOMMIT"):
            await units.prepare()
    await finished(units)


# --- SQLite: who may write ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("makers", [1, 8])
@pytest.mark.parametrize("sync", [False, True])
async def test_concurrent_read_modify_write_loses_no_update(sqlite: Place, makers: int, sync: bool) -> None:
    """Eight units that read and then write one row, over one pool or over eight (as eight processes would), all
    succeed, and none of the updates is lost."""
    all_units = [await prepared(sqlite, sync=sync) for _ in range(makers)]
    async with all_units[0].begin(Session if sync else AsyncSession) as unit:
        await insert(unit, 1)
        await unit.commit()

    async def add_one(units: SqlUnits, turn: int) -> None:
        async with units.begin(Session if sync else AsyncSession) as unit:
            await unit.fresh([key(turn)])
            n = (await unit.run(lambda: unit.connection.execute(text("SELECT n FROM items")))).scalar_one()
            await asyncio.sleep(0)
            await unit.run(lambda: unit.connection.execute(text("UPDATE items SET n = :n"), {"n": n + 1}))
            await unit.stage([message(turn)])
            await unit.commit()

    await asyncio.gather(*(add_one(all_units[turn % makers], turn) for turn in range(40)))
    async with all_units[0].begin(Session if sync else AsyncSession) as unit:
        read = await unit.run(lambda: unit.connection.execute(text("SELECT n FROM items")))
        assert read.scalar_one() == 40
    for units in all_units:
        await finished(units)


async def test_an_applications_own_sessions_do_not_become_immediate(sqlite: Place) -> None:
    """While a unit holds the write lock, a session on the same pool reads at once, and what it reads is the past."""
    units = await prepared(sqlite)
    sessions = units._database._sessions
    async with units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        async with asyncio.timeout(2), sessions() as session:
            assert (await session.execute(text("SELECT count(*) FROM items"))).scalar_one() == 0
            raw = (await (await session.connection()).get_raw_connection()).driver_connection
            assert not raw.in_transaction
        await unit.commit()
    await finished(units)


async def test_the_pragmas_of_a_units_connection(sqlite: Place) -> None:
    """A unit's connection is in WAL and syncs each commit, with at least 5 seconds of patience and no more than the
    application's; foreign keys stay as they were."""
    units = await prepared(sqlite)
    patient = SqlUnits(sqlite.engine(connect_args={"timeout": 30}))

    @event.listens_for(patient._database.engine, "connect")
    def relaxed(dbapi: Any, record: Any) -> None:
        cursor = dbapi.cursor()
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
    found = []
    for one in (units, patient):
        async with one.begin(AsyncSession) as unit:
            rows = [await unit.connection.execute(text(f"PRAGMA {name}")) for name in names]
            found.append([row.scalar_one() for row in rows])
        await finished(one)
    assert found == [["wal", 2, 5000, 0], ["wal", 2, 30000, 1]]


async def test_an_engine_that_begins_by_itself_works_too(sqlite: Place) -> None:
    """Applications that follow SQLAlchemy's recipe for savepoints (no implicit BEGIN, one of their own at each begin)
    get immediate transactions all the same."""
    await finished(await prepared(sqlite))
    engine = sqlite.engine()

    @event.listens_for(engine.sync_engine, "connect")
    def quiet(dbapi: Any, record: Any) -> None:
        dbapi.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    units, other = SqlUnits(engine), await prepared(sqlite)
    async with units.begin(AsyncSession) as unit:
        blocked_one = asyncio.create_task(count(other, "items"))
        await insert(unit, 1)
        await unit.commit()
    assert await blocked_one == 1
    await finished(units)
    await finished(other)


# --- the outbox in the application's own transactions -------------------------------------------------------------


class Calls(list[str]):
    def __call__(self) -> None:
        self.append("called")


async def test_staging_in_ones_own_session(units: SqlUnits) -> None:
    """What is staged in an application's session is there after its commit, and the callback has come; after a
    rollback neither."""
    sessions = units._database._sessions
    calls = Calls()
    async with sessions() as session:
        await units.outbox(session).stage([message(1)], after_commit=calls)
        assert calls == []
        assert session.in_transaction()
        await session.rollback()
    assert (calls, await units.committed([message(1)])) == ([], [])
    async with sessions() as session:
        await units.outbox(session).stage([message(1), message(2, not_before=5.0)], after_commit=calls)
        await session.commit()
        assert calls == ["called"]
        assert await units.committed([message(1), message(2), message(3)]) == [message(1), message(2, not_before=5.0)]
        await session.execute(text("SELECT 1"))
        await session.commit()
    assert calls == ["called"]


async def test_a_savepoint_takes_back_what_was_staged_in_it(units: SqlUnits) -> None:
    """The outer commit calls back, and `committed` has only what is really there."""
    calls = Calls()
    async with units._database._sessions() as session, session.begin():
        await units.outbox(session).stage([message(1)], after_commit=calls)
        with pytest.raises(LookupError):
            async with session.begin_nested():
                await units.outbox(session).stage([message(2)], after_commit=calls)
                raise LookupError
        assert calls == []
    assert calls
    assert await units.committed([message(1), message(2)]) == [message(1)]


async def test_staging_in_ones_own_connection(database: Place, units: SqlUnits) -> None:
    """A plain async connection works like a session."""
    calls, engine = Calls(), database.engine()
    async with engine.begin() as connection:
        await units.outbox(connection).stage([message(1)], after_commit=calls)
    assert calls == ["called"]
    with pytest.raises(LookupError):
        async with engine.begin() as connection:
            await units.outbox(connection).stage([message(2)], after_commit=calls)
            raise LookupError
    assert calls == ["called"]
    assert await units.committed([message(1), message(2)]) == [message(1)]
    await engine.dispose()


async def test_staging_in_a_sync_session_and_connection(database: Place, units: SqlUnits) -> None:
    """Sync applications stage without an event loop; the callback comes in their thread."""
    engine, threads = database.sync_engine(), []

    def work() -> int:
        with Session(engine) as session, session.begin():
            units.outbox(session).stage_sync([message(1)], lambda: threads.append(threading.get_ident()))
        with engine.begin() as connection:
            units.outbox(connection).stage_sync([message(2)], lambda: threads.append(threading.get_ident()))
        engine.dispose()
        return threading.get_ident()

    assert [await asyncio.to_thread(work)] * 2 == threads
    assert await units.committed([message(1), message(2)]) == [message(1), message(2)]


async def test_a_callback_that_fails_harms_nobody(units: SqlUnits, caplog: pytest.LogCaptureFixture) -> None:
    """An error in the callback is logged; the application's commit has succeeded."""

    def fail() -> None:
        raise LookupError("no relay")

    async with units._database._sessions() as session:
        await units.outbox(session).stage([message(1)], after_commit=fail)
        await session.commit()
    assert "after a commit" in caplog.text
    assert await units.committed([message(1)]) == [message(1)]


async def test_the_wrong_way_to_stage_is_refused(units: SqlUnits) -> None:
    """`stage` wants an async session, `stage_sync` a sync one; each says so."""
    with pytest.raises(ConfigError, match="stage_sync"):
        await Outbox(Session()).stage([message(1)])
    with pytest.raises(ConfigError, match=r"await stage\(\)"):
        Outbox(AsyncSession()).stage_sync([message(1)])


# --- the relay ----------------------------------------------------------------------------------------------------


async def staged(units: SqlUnits, *numbers: int) -> None:
    async with units.begin(AsyncSession) as unit:
        await unit.stage([message(n) for n in numbers])
        await unit.commit()


async def leases_end(units: SqlUnits) -> None:
    await units._database.run(lambda connection: connection.execute(text("UPDATE tidings_outbox SET leased_until = 0")))


async def test_fresh_messages_are_left_to_their_process(units: SqlUnits) -> None:
    """Right after the commit no relay gets a message, because its own process sends it; once sent it is gone."""
    await staged(units, 1)
    assert await units.unsent(10) == []
    age = await units.oldest_unsent()
    assert age is not None
    assert 0 <= age < 10
    await units.mark_sent([message(1)])
    assert await units.oldest_unsent() is None


async def test_leftovers_come_back_whole_and_in_order(units: SqlUnits) -> None:
    """A relay gets what a stopped process left, oldest first, with every field."""
    given = [message(3, not_before=17.5), message(1, headers={"ce-partitionkey": "k"}, body=b""), message(2)]
    async with units.begin(AsyncSession) as unit:
        await unit.stage(given)
        await unit.stage([message(1)])
        await unit.commit()
    await leases_end(units)
    assert await units.unsent(2) == given[:2]
    assert await units.unsent(2) == given[2:]
    assert await units.unsent(2) == []


async def test_a_lease_ends_with_time(sqlite: Place) -> None:
    """What nobody has sent within the lease is handed out again: 10 s after staging, 30 s after a relay took it."""
    clock = ManualClock()
    units = await prepared(sqlite, clock=clock)
    await staged(units, 1)
    for lease in (10, 30):
        await clock.advance(lease - 0.5)
        assert await units.unsent(10) == []
        await clock.advance(0.5)
        assert await units.unsent(10) == [message(1)]
    assert await units.oldest_unsent() == 40
    await finished(units)


async def test_relays_share_the_work(database: Place) -> None:
    """Relays that lease at the same time get different messages, all of them together."""
    relays = [await prepared(database) for _ in range(4)]
    await staged(relays[0], *range(100))
    await leases_end(relays[0])
    got: list[str] = []

    async def relay(units: SqlUnits) -> None:
        while batch := await units.unsent(7):
            got.extend(m.id for m in batch)

    await asyncio.gather(*(relay(units) for units in relays))
    assert sorted(got) == sorted(f"m{n}" for n in range(100))
    for units in relays:
        await finished(units)


async def test_a_slow_relay_cannot_take_out_what_another_has_taken_over(database: Place) -> None:
    """`mark_sent` after one's lease has gone to somebody else changes nothing."""
    slow, quick = await prepared(database), await prepared(database)
    await staged(slow, 1)
    await leases_end(slow)
    assert await quick.unsent(10) == [message(1)]
    await slow.mark_sent([message(1)])
    assert await count(quick, "tidings_outbox") == 1
    await quick.mark_sent([message(1)])
    assert await count(quick, "tidings_outbox") == 0
    await finished(slow)
    await finished(quick)


async def test_pruning_forgets_the_old_and_keeps_the_rest(units: SqlUnits) -> None:
    """Marks older than the limit go, over several batches; younger ones stay."""
    async with units.begin(AsyncSession) as unit:
        await unit.fresh([key(n) for n in range(2500)])
        await unit.connection.execute(text("UPDATE tidings_inbox SET handled_at = handled_at - 1000"))
        await unit.fresh([key(n) for n in range(2500, 2510)])
        await unit.commit()
    assert await units.prune_inbox(2000) == 0
    assert await units.prune_inbox(500) == 2500
    assert await count(units, "tidings_inbox") == 10


# --- the tables ---------------------------------------------------------------------------------------------------


async def test_sqlite_makes_its_tables_by_itself(sqlite: Place) -> None:
    """`prepare` on an empty SQLite file is all it takes, from several processes at once."""
    units = [SqlUnits(sqlite.engine()) for _ in range(4)]
    await asyncio.gather(*(one.prepare() for one in units))
    assert (await units[0].migrations.status()).pending == ()
    for one in units:
        await finished(one)


async def test_postgresql_without_tables_names_the_command(postgresql: Place) -> None:
    """`prepare` changes nothing on PostgreSQL: it raises and names the command."""
    units = SqlUnits(postgresql.engine())
    with pytest.raises(DatabaseBehind, match="tidings db upgrade") as caught:
        await units.prepare()
    assert "s3cr3t" not in str(caught.value)
    assert not units.transient(caught.value)
    await units.migrations.upgrade()
    await units.prepare()
    await finished(units)


async def test_concurrent_upgrades_happen_once(database: Place) -> None:
    """Four processes that upgrade at the same time: one does it, the others wait and find nothing to do."""
    done = await asyncio.gather(*(Migrations(database.url).upgrade() for _ in range(4)))
    assert sorted(done) == [[], [], [], ["0001_inbox_outbox"]]
    status = await Migrations(database.url).status()
    assert (status.applied, status.pending) == (("0001_inbox_outbox",), ())


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


async def test_prefix_and_schema_keep_two_applications_apart(postgresql: Place) -> None:
    """Two prefixes, or two schemas, in one database know nothing of each other."""
    engine = postgresql.engine()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA app"))
    made = [SqlUnits(engine), SqlUnits(engine, prefix="two_"), SqlUnits(engine, schema="app")]
    for units in made:
        await units.migrations.upgrade()
        await units.prepare()
        async with units.begin(AsyncSession) as unit:
            assert await unit.fresh([key(1)]) == {key(1)}
            await unit.stage([message(1)])
            await unit.commit()
    for units in made:
        await leases_end_of(units)
        assert await units.unsent(10) == [message(1)]
        await units.mark_sent([message(1)])
        assert await units.oldest_unsent() is None
        assert await units.prune_inbox(-1) == 1
    await engine.dispose()


async def leases_end_of(units: SqlUnits) -> None:
    table = {"two_": "two_outbox"}.get(
        units._store.prefix, "app.tidings_outbox" if units._store.schema else "tidings_outbox"
    )
    await units._database.run(lambda connection: connection.execute(text(f"UPDATE {table} SET leased_until = 0")))
