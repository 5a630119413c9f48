"""The unit of work on real databases, SQLite files and a PostgreSQL server."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from sql_app import App, insert, key, message
from tidings.errors import ConfigError
from tidings.unit import InboxKey

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)

BOTH_ASYNC = (AsyncSession, AsyncConnection)
BOTH_SYNC = (Session, Connection)
ANNOTATIONS = pytest.mark.parametrize("annotation", [*BOTH_ASYNC, *BOTH_SYNC])


@pytest_asyncio.fixture
async def app(database: Place) -> AsyncIterator[App]:
    made = await App.start(database)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def sync_app(database: Place) -> AsyncIterator[App]:
    made = await App.start(database, sync=True)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def given(database: Place, annotation: type) -> AsyncIterator[App]:
    """An application whose handlers may ask for `annotation`."""
    made = await App.start(database, sync=annotation in BOTH_SYNC)
    yield made
    await made.close()


@ANNOTATIONS
async def test_effect_mark_and_follow_up_commit_together(given: App, annotation: type) -> None:
    """After a commit the row, the inbox mark and the staged message are there; a redelivery is known."""
    async with given.units.begin(annotation) as unit:
        assert isinstance(unit.connection, annotation)
        assert await unit.fresh([key(1)]) == {key(1)}
        await insert(unit, 1)
        await unit.stage([message(1)])
        assert await unit.run(threading.get_ident) is not None
        await unit.commit()
    async with given.units.begin(annotation) as unit:
        assert await unit.fresh([key(1), key(2), key(1, "other")]) == {key(2), key(1, "other")}
    assert await given.count("items") == 1
    assert await given.count("tidings_outbox") == 1


@ANNOTATIONS
@pytest.mark.parametrize("how", ["raise", "leave", "rollback"])
async def test_without_a_commit_nothing_is_left(given: App, annotation: type, how: str) -> None:
    """A handler that raises, or a unit that is left or rolled back, leaves no effect, no mark and no message."""

    async def attempt() -> None:
        async with given.units.begin(annotation) as unit:
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
    assert [await given.count(f"{table}") for table in ("items", "tidings_inbox", "tidings_outbox")] == [0, 0, 0]
    async with given.units.begin(annotation) as unit:
        assert await unit.fresh([key(1)]) == {key(1)}


async def test_many_keys_at_once(app: App) -> None:
    """A group of messages is checked in one statement, doubles in it included."""
    keys = [key(n) for n in range(1500)]
    async with app.units.begin(AsyncSession) as unit:
        assert await unit.fresh(keys[:500]) == set(keys[:500])
        assert await unit.fresh([*keys, *keys]) == set(keys[500:])
        assert await unit.fresh([]) == set()
        await unit.commit()


async def test_keys_of_many_subjects_at_once(app: App) -> None:
    """Of messages of several groups and subjects, in any order, those that were handled before are told from those that
    were not, whatever is in their names; and marks that were taken back are as if they had never been made."""
    names = ["a", "b.c", '"', "'", "ä€", "1", "", "[]", "\\", "\n"]
    keys = [InboxKey(group, subject, id) for id in names for group in names[:3] for subject in names]
    async with app.units.begin(AsyncSession) as unit:
        assert await unit.fresh(keys[::2]) == set(keys[::2])
        await unit.commit()
    async with app.units.begin(AsyncSession) as unit:
        assert await unit.fresh(keys) == set(keys[1::2])
        await unit.forget(keys[1::4])
        await unit.commit()
    async with app.units.begin(AsyncSession) as unit:
        assert await unit.fresh(list(reversed(keys))) == set(keys[1::4])
        await unit.rollback()
    assert await app.count("tidings_inbox") == len(keys) - len(keys[1::4])


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_fresh_waits_for_another_transaction_with_the_same_message(postgresql: Place, ending: str) -> None:
    """Two workers with one message: the second waits, then skips it, or has it if the first rolled back."""
    app = await App.start(postgresql)
    async with app.units.begin(AsyncSession) as first, app.units.begin(AsyncSession) as second:
        assert await first.fresh([key(1)]) == {key(1)}
        waiting = asyncio.create_task(second.fresh([key(1)]))
        await blocked(app)
        assert not waiting.done()
        await getattr(first, ending)()
        assert await waiting == (set() if ending == "commit" else {key(1)})
    await app.close()


async def blocked(app: App) -> None:
    """Wait until some session of the database waits for a lock."""
    async with asyncio.timeout(10):
        while not await app.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            pass


async def test_workers_with_overlapping_messages_never_deadlock(postgresql: Place) -> None:
    """Keys are marked in one order, so that groups of messages in opposite orders wait and never deadlock."""
    app = await App.start(postgresql)
    marked: list[InboxKey] = []

    async def work(turn: int) -> None:
        keys = [key(n) for n in range(turn, turn + 200)]
        async with app.units.begin(AsyncSession) as unit:
            fresh = await unit.fresh(keys if turn % 2 else keys[::-1])
            await unit.commit()
            marked.extend(fresh)

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(turn) for turn in range(12)))
    assert sorted(marked) == [*sorted(key(n) for n in range(211))]
    await app.close()


async def test_a_sync_handler_runs_in_the_thread_of_its_session(sync_app: App) -> None:
    """Two units at a time have a thread each, neither of them the event loop's, and each keeps its own."""

    async def idents() -> set[int]:
        async with sync_app.units.begin(Session) as unit:
            return {await unit.run(threading.get_ident) for _ in range(3)}

    if sync_app.place.kind == "sqlite":  # one writer at a time
        assert len(await idents()) == 1
        assert threading.get_ident() not in await idents()
        return
    async with sync_app.units.begin(Session) as one, sync_app.units.begin(Session) as other:
        seen = [await one.run(threading.get_ident), await other.run(threading.get_ident), threading.get_ident()]
        assert len(set(seen)) == 3
        assert await one.run(threading.get_ident) == seen[0]


async def test_cancelling_a_sync_handler_waits_for_its_end_and_rolls_back(sync_app: App) -> None:
    """A thread cannot be stopped: a cancelled unit waits for the handler, then rolls back and gives the session up."""
    started, let_go, ended = threading.Event(), threading.Event(), []

    async def attempt() -> None:
        async with sync_app.units.begin(Session) as unit:
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
    assert await sync_app.count("items") == 0


async def test_run_awaits_an_async_function_with_the_callers_context(app: App) -> None:
    """On an async unit `run` is a call, awaited if need be."""
    who = contextvars.ContextVar("who", default="nobody")
    who.set("me")

    async def handler(prefix: str) -> str:
        return prefix + who.get()

    async with app.units.begin(AsyncSession) as unit:
        assert await unit.run(handler, "it is ") == "it is me"


@ANNOTATIONS
@pytest.mark.parametrize("method", ["commit", "rollback", "close", "begin"])
async def test_a_handler_cannot_end_the_transaction(given: App, annotation: type, method: str) -> None:
    """`commit()` and its like raise with what to do instead, and the unit goes on as if nothing had been said."""
    async with given.units.begin(annotation) as unit:
        await insert(unit, 1)

        def call() -> Any:
            result = getattr(unit.connection, method)()
            return result.__aenter__() if method == "begin" and annotation in BOTH_ASYNC else result

        with pytest.raises(ConfigError, match=r"the worker commits when the handler returns"):
            await unit.run(call)
        await insert(unit, 2)
        await unit.commit()
    assert await given.count("items") == 2


async def test_the_connection_behind_a_session_cannot_end_it_either(app: App) -> None:
    """Going through `session.connection()` or `session.sync_session` leads to the same refusal."""
    async with app.units.begin(AsyncSession) as unit:
        with pytest.raises(ConfigError, match="the worker commits"):
            await (await unit.connection.connection()).commit()
        with pytest.raises(ConfigError, match="the worker commits"):
            await unit.connection.run_sync(lambda session: session.rollback())
        with pytest.raises(ConfigError, match="the worker commits"):
            await unit.connection.__aexit__(None, None, None)
        await unit.commit()


async def test_savepoints_are_the_handlers_own(app: App) -> None:
    """`begin_nested()` works: what it rolls back is gone, what stands around it commits."""
    async with app.units.begin(AsyncSession) as unit:
        session: AsyncSession = unit.connection
        await insert(unit, 1)
        savepoint = await session.begin_nested()
        await insert(unit, 2)
        await savepoint.rollback()
        async with session.begin_nested():
            await insert(unit, 3)
        await unit.commit()
    assert await app.count("items") == 2


async def test_savepoints_of_a_sync_session_are_the_handlers_own(sync_app: App) -> None:
    """`begin_nested()` works on a sync session and on its connection."""

    def part(owner: Session | Connection, number: int) -> None:
        with owner.begin_nested():
            owner.execute(text("INSERT INTO items VALUES (:n, 0)"), {"n": number})

    for number, annotation in enumerate(BOTH_SYNC):
        async with sync_app.units.begin(annotation) as unit:
            await unit.run(part, unit.connection, number)
            await unit.commit()
    assert await sync_app.count("items") == 2


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
async def test_ending_the_transaction_as_sql_is_noticed(app: App, word: str) -> None:
    """A handler that says COMMIT in SQL fails at the worker's commit instead of losing its follow-ups quietly."""
    async with app.units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        connection = await unit.connection.connection()
        raw = (await connection.get_raw_connection()).driver_connection
        await raw.execute(word)
        with pytest.raises(ConfigError, match="ended inside the handler"):
            await unit.commit()
    assert await app.count("tidings_inbox") == 0


@pytest.mark.parametrize(
    "said",
    ["COMMIT", " end transaction", "-- keep it\n/* now */ Commit", "ROLLBACK", "begin", "START  TRANSACTION", "ABORT"],
)
async def test_what_ends_the_transaction_as_sql_is_refused(app: App, said: str) -> None:
    """It is not done, so nothing is torn apart, also where the handler swallows the error and goes on."""
    async with app.units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        with pytest.raises(ConfigError, match=r"as SQL inside a handler .*, and was not done"):
            await unit.connection.execute(text(said))
        await unit.connection.execute(text("SAVEPOINT mine"))
        await insert(unit, 2)
        await unit.connection.execute(text("ROLLBACK TO SAVEPOINT mine"))
        await unit.connection.execute(text("RELEASE SAVEPOINT mine"))
        await unit.commit()
    assert await app.count("items") == 1
    async with app.engine.connect() as connection:  # the application's own transactions are its own
        await connection.execute(text("BEGIN"))


async def test_an_error_that_the_handler_swallowed_cannot_commit_half(app: App) -> None:
    """PostgreSQL answers COMMIT with a silent rollback after an error; the unit raises. SQLite keeps the rest."""
    async with app.units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        with pytest.raises(Exception, match=r"(?i)unique"):
            await insert(unit, 1)
        if app.place.kind == "sqlite":
            await unit.commit()
        else:
            with pytest.raises(Exception, match="current transaction is aborted") as caught:
                await unit.commit()
            assert not app.units.transient(caught.value)
    assert await app.count("items") == (app.place.kind == "sqlite")


async def test_an_error_inside_a_savepoint_harms_nothing(app: App) -> None:
    """A failed part in a savepoint leaves the rest of the transaction to commit."""
    async with app.units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        with pytest.raises(Exception, match=r"(?i)unique"):
            async with unit.connection.begin_nested():
                await insert(unit, 1)
        await unit.commit()
    assert await app.count("items") == 1


async def test_an_engine_without_transactions_is_refused(database: Place) -> None:
    """An engine in AUTOCOMMIT would keep half of a failed handler; PostgreSQL's is refused at the begin."""
    await (await App.start(database)).close()
    app = App(database, pool={"isolation_level": "AUTOCOMMIT"})
    if database.kind == "sqlite":  # our BEGIN IMMEDIATE makes a transaction all the same
        async with app.units.begin(AsyncSession) as unit:
            await insert(unit, 1)
        assert await app.count("items") == 0
    else:
        with pytest.raises(ConfigError, match="AUTOCOMMIT"):
            await app.units.prepare()
    await app.close()


@pytest.mark.parametrize("makers", [1, 8])
@pytest.mark.parametrize("sync", [False, True])
async def test_concurrent_read_modify_write_loses_no_update(sqlite: Place, makers: int, sync: bool) -> None:
    """Eight units that read and then write one row, over one pool or over eight (as eight processes would), all
    succeed, and none of the updates is lost."""
    apps = [await App.start(sqlite, sync=sync) for _ in range(makers)]
    async with apps[0].units.begin(Session if sync else AsyncSession) as unit:
        await insert(unit, 1)
        await unit.commit()

    async def add_one(app: App, turn: int) -> None:
        async with app.units.begin(Session if sync else AsyncSession) as unit:
            await unit.fresh([key(turn)])
            n = (await unit.run(lambda: unit.connection.execute(text("SELECT n FROM items")))).scalar_one()
            await asyncio.sleep(0)
            await unit.run(lambda: unit.connection.execute(text("UPDATE items SET n = :n"), {"n": n + 1}))
            await unit.stage([message(turn)])
            await unit.commit()

    await asyncio.gather(*(add_one(apps[turn % makers], turn) for turn in range(40)))
    assert await apps[0].sql("SELECT n FROM items") == [(40,)]
    for app in apps:
        await app.close()


async def test_an_applications_own_sessions_do_not_become_immediate(sqlite: Place) -> None:
    """While a unit holds the write lock, a session on the same pool reads at once, and what it reads is the past."""
    app = await App.start(sqlite)
    sessions = app.sessions
    async with app.units.begin(AsyncSession) as unit:
        await insert(unit, 1)
        async with asyncio.timeout(2), sessions() as session:
            assert (await session.execute(text("SELECT count(*) FROM items"))).scalar_one() == 0
            raw = (await (await session.connection()).get_raw_connection()).driver_connection
            assert not raw.in_transaction
        await unit.commit()
    await app.close()


async def test_the_pragmas_of_a_units_connection(sqlite: Place) -> None:
    """A unit's connection is in WAL and syncs each commit, with at least 5 seconds of patience and no more than the
    application's; foreign keys stay as they were."""
    app = await App.start(sqlite)
    patient = App(sqlite, pool={"connect_args": {"timeout": 30}})

    @event.listens_for(patient.engine.sync_engine, "connect")
    def relaxed(dbapi: Any, record: Any) -> None:
        cursor = dbapi.cursor()
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
    found = []
    for one in (app, patient):
        async with one.units.begin(AsyncSession) as unit:
            rows = [await unit.connection.execute(text(f"PRAGMA {name}")) for name in names]
            found.append([row.scalar_one() for row in rows])
        await one.close()
    assert found == [["wal", 2, 5000, 0], ["wal", 2, 30000, 1]]


async def test_a_transaction_changes_threads_for_begin_and_commit_only(
    sqlite: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """What may wait, for the write lock or for the disk, is left to the connection's thread; statements that are known
    to be quick, and what asks the database nothing, run where they are."""
    app = await App.start(sqlite)

    async def handled(number: int) -> None:
        async with app.units.begin(AsyncSession) as unit:
            assert await unit.fresh([key(number)]) == {key(number)}
            await insert(unit, number)
            await unit.commit()

    await handled(1)
    await handled(2)
    caplog.set_level(logging.DEBUG, "aiosqlite")
    await handled(3)
    begin, commit = [text for _, _, text in caplog.record_tuples if text.startswith("executing")]
    assert "BEGIN IMMEDIATE" in begin
    assert "method commit of" in commit
    await app.close()


async def test_an_engine_that_begins_by_itself_works_too(sqlite: Place) -> None:
    """Applications that follow SQLAlchemy's recipe for savepoints (no implicit BEGIN, one of their own at each begin)
    get immediate transactions all the same."""
    await (await App.start(sqlite)).close()
    app, other = App(sqlite), await App.start(sqlite)

    @event.listens_for(app.engine.sync_engine, "connect")
    def quiet(dbapi: Any, record: Any) -> None:
        dbapi.isolation_level = None

    @event.listens_for(app.engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    async with app.units.begin(AsyncSession) as unit:
        second = asyncio.create_task(other.stage(1))
        await insert(unit, 1)
        assert await app.sql("SELECT * FROM items") == []
        assert not second.done()
        await unit.commit()
    await second
    assert await app.count("items") == 1
    await app.close()
    await other.close()
