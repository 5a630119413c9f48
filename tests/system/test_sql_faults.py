"""The unit of work when the database is away, busy, full or cut off, and when somebody cancels in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from postgres_proxy import Proxy
from sql_app import App, insert, key, message
from tidings.errors import DatabaseError
from tidings.sql import Migrations

if TYPE_CHECKING:
    from databases import Place, Server

pytest_plugins = ("databases",)

ONE_CONNECTION = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 10}
BOTH = pytest.mark.parametrize("annotation", [AsyncSession, Session])


async def handle(app: App, annotation: type, number: int) -> None:
    """One message, as a worker does it."""
    async with app.units.begin(annotation) as unit:
        if await unit.fresh([key(number)]):
            await insert(unit, number)
            await unit.stage([message(number)])
        await unit.commit()


async def whole(app: App) -> int:
    """How many messages were handled; each with its row, its mark and its follow-up, or the test fails."""
    counts = {table: await app.count(table) for table in ("items", "tidings_inbox", "tidings_outbox")}
    assert len(set(counts.values())) == 1, counts
    return counts["items"]


@BOTH
async def test_a_session_is_over_with_its_transaction(database: Place, annotation: type) -> None:
    """A task that a handler has left behind cannot use its session any more: it would begin a transaction that nobody
    ends, and on SQLite the next message would wait for it."""
    app = await App.start(database, sync=annotation is Session)
    async with app.units.begin(annotation) as unit:
        left_behind = unit.connection
        await unit.commit()
    session = left_behind.sync_session if isinstance(left_behind, AsyncSession) else left_behind
    with pytest.raises(InvalidRequestError, match="permanently closed"):
        session.begin()
    await handle(app, annotation, 1)
    assert await whole(app) == 1
    await app.close()


@BOTH
async def test_200_cancels_at_any_moment_leak_no_connection(database: Place, annotation: type) -> None:
    """With one connection in the pool, a unit cancelled anywhere leaves it usable for the next one, and commits all
    of its message or nothing."""
    app = await App.start(database, sync=annotation is Session, pool=ONE_CONNECTION)
    dice = random.Random(20)
    started = time.monotonic()
    for number in range(10):
        await handle(app, annotation, number)
    usual = (time.monotonic() - started) / 10
    cancelled = 0
    for number in range(10, 210):
        task = asyncio.create_task(handle(app, annotation, number))
        await asyncio.wait({task}, timeout=dice.uniform(0, usual))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        cancelled += task.cancelled()
    assert cancelled > 20
    async with asyncio.timeout(10):
        for number in range(10, 210):
            await handle(app, annotation, number)
    assert await whole(app) == 210
    assert app.engine.pool.checkedout() == 0
    await app.close()


async def test_cancelling_one_who_waits_for_a_turn_disturbs_nobody(database: Place) -> None:
    """Units that wait for a connection or for SQLite's write lock can be cancelled; the others get their turn."""
    app = await App.start(database, pool=ONE_CONNECTION)
    async with app.units.begin(AsyncSession) as unit:
        waiting = [asyncio.create_task(handle(app, AsyncSession, number)) for number in range(10)]
        await insert(unit, 100)
        for task in waiting[::2]:
            task.cancel()
        await asyncio.wait(waiting[::2])
        await unit.rollback()
    await asyncio.gather(*waiting[1::2])
    assert await whole(app) == 5
    await app.close()


@BOTH
async def test_a_server_that_is_down_and_comes_back(
    postgresql: Place, postgresql_server: Server, annotation: type
) -> None:
    """While PostgreSQL is down every begin says so; once it is back, everything goes on without a restart."""
    app = await App.start(postgresql, sync=annotation is Session)
    await handle(app, annotation, 1)
    try:
        postgresql_server.stop()
        with pytest.raises(DatabaseError, match="no transaction on postgresql") as caught:
            await handle(app, annotation, 2)
        assert app.units.transient(caught.value)
        assert "s3cr3t" not in str(caught.value)
        with pytest.raises(DatabaseError):
            await app.units.prepare()
    finally:
        postgresql_server.start()
    await until_it_works(app, lambda: handle(app, annotation, 2))
    assert await whole(app) == 2
    await app.close()


@BOTH
@pytest.mark.parametrize("moment", ["in the handler", "before the commit", "at the commit"])
async def test_a_server_that_crashes_in_the_middle(
    postgresql: Place, postgresql_server: Server, annotation: type, moment: str
) -> None:
    """A crash in a transaction is the database's fault, undoes all of it, and costs the pool nothing."""
    app = await App.start(postgresql, sync=annotation is Session, pool=ONE_CONNECTION)

    async def crash() -> None:
        async with app.units.begin(annotation) as unit:
            await unit.fresh([key(1)])
            await insert(unit, 1)
            postgresql_server.stop(signal.SIGQUIT)
            if moment == "in the handler":
                await insert(unit, 2)
            if moment == "before the commit" and annotation is AsyncSession:
                await noticed(unit.connection)
            await unit.commit()

    try:
        with pytest.raises(Exception, match=r"(?i)connection|terminat|server") as caught:
            await crash()
        assert app.units.transient(caught.value), repr(caught.value)
    finally:
        postgresql_server.start()
    await until_it_works(app, lambda: handle(app, annotation, 1))
    assert await whole(app) == 1
    await app.close()


async def noticed(session: AsyncSession) -> None:
    """Wait until the driver has seen that its connection is gone."""
    driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    async with asyncio.timeout(10):
        while not driver.is_closed():
            await asyncio.sleep(0)


async def until_it_works(app: App, attempt: Callable[[], Awaitable[None]]) -> None:
    """As a worker does: again, as long as it is the database's fault. Pools find out about dead connections by use."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await attempt()
            except Exception as error:
                if not app.units.transient(error):
                    raise


@BOTH
async def test_a_connection_lost_during_commit(postgresql: Place, postgresql_server: Server, annotation: type) -> None:
    """The outcome is unknown to the worker, so it counts as the database's fault; the next delivery finds the mark."""
    app = await App.start(postgresql)
    async with Proxy(postgresql_server.port) as proxy:
        proxy.cut_at = b"COMMIT"
        behind = App(postgresql.through(proxy.port), sync=annotation is Session)
        with pytest.raises(DBAPIError) as caught:
            await handle(behind, annotation, 1)
        assert behind.units.transient(caught.value), repr(caught.value)
        await behind.close()
    assert await whole(app) == 1
    await handle(app, AsyncSession, 1)
    assert await whole(app) == 1
    await app.close()


async def test_a_deadlock_is_nobodys_fault(postgresql: Place) -> None:
    """Two handlers that lock the same rows in opposite orders: PostgreSQL ends one, and that one is transient."""
    app = await App.start(postgresql)
    await app.sql("INSERT INTO items VALUES (1, 0), (2, 0)")
    ready = asyncio.Barrier(2)

    async def work(*rows: int) -> None:
        async with app.units.begin(AsyncSession) as unit:
            for row in rows:
                await unit.connection.execute(text("UPDATE items SET n = n + 1 WHERE id = :id"), {"id": row})
                if row == rows[0]:
                    await ready.wait()
            await unit.commit()

    results = await asyncio.gather(work(1, 2), work(2, 1), return_exceptions=True)
    errors = [error for error in results if error is not None]
    assert [type(error) for error in errors] == [DBAPIError]
    assert app.units.transient(errors[0])
    await app.close()


async def test_a_serialization_failure_is_nobodys_fault(postgresql: Place) -> None:
    """Under SERIALIZABLE, the loser of two conflicting handlers is transient."""
    app = await App.start(postgresql, pool={"isolation_level": "SERIALIZABLE"})
    await app.sql("INSERT INTO items VALUES (1, 0)")
    ready = asyncio.Barrier(2)

    async def work() -> None:
        async with app.units.begin(AsyncSession) as unit:
            n = (await unit.connection.execute(text("SELECT n FROM items"))).scalar_one()
            await ready.wait()
            await unit.connection.execute(text("UPDATE items SET n = :n"), {"n": n + 1})
            await unit.commit()

    results = await asyncio.gather(work(), work(), return_exceptions=True)
    errors = [error for error in results if error is not None]
    assert len(errors) == 1
    assert isinstance(errors[0], Exception)
    assert app.units.transient(errors[0])
    await app.close()


@BOTH
async def test_a_session_ended_by_an_administrator(postgresql: Place, annotation: type) -> None:
    """`pg_terminate_backend` in the middle of a handler is transient, and so is going on after it was swallowed."""
    app = await App.start(postgresql, sync=annotation is Session)

    async def work(swallow: bool) -> None:
        async with app.units.begin(annotation) as unit:
            pid = (await unit.run(lambda: unit.connection.execute(text("SELECT pg_backend_pid()")))).scalar_one()
            await app.sql(f"SELECT pg_terminate_backend({pid}, 5000)")
            with contextlib.suppress(*([DBAPIError] if swallow else [])):
                await insert(unit, 1)
            await unit.commit()

    for swallow in (False, True):
        with pytest.raises(Exception, match=r"(?i)connection|terminat|transaction") as caught:
            await work(swallow)
        assert app.units.transient(caught.value), repr(caught.value)
    assert await app.count("items") == 0
    await app.close()


async def test_too_many_connections_and_a_full_pool(postgresql: Place) -> None:
    """No connection to be had, from the server or from one's own pool: both are transient."""
    app = await App.start(postgresql)
    await app.sql(f"ALTER DATABASE {app.engine.url.database} CONNECTION LIMIT 1")
    await app.sql("CREATE ROLE guest LOGIN PASSWORD 's3cr3t'")
    guest = App(postgresql.as_user("guest"))
    full = App(postgresql, pool={**ONE_CONNECTION, "pool_timeout": 0.01})
    async with full.units.begin(AsyncSession):
        for crowded in (guest, full):
            with pytest.raises(DatabaseError, match="no transaction") as caught:
                async with crowded.units.begin(AsyncSession):
                    pass
            assert app.units.transient(caught.value)
    await app.sql("DROP ROLE guest")
    for one in (app, guest, full):
        await one.close()


@BOTH
async def test_what_is_the_messages_fault(database: Place, annotation: type) -> None:
    """A broken constraint, a trigger that raises, wrong SQL and errors of the handler's own are not transient."""
    app = await App.start(database, sync=annotation is Session)
    if database.kind == "sqlite":
        await app.sql("CREATE TRIGGER no BEFORE INSERT ON items WHEN new.n < 0 BEGIN SELECT RAISE(ABORT, 'no'); END")
    else:
        body = "BEGIN IF new.n < 0 THEN RAISE EXCEPTION 'no'; END IF; RETURN new; END"
        await app.sql(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
        await app.sql("CREATE TRIGGER no BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION refuse()")

    async def run(sql: str) -> None:
        async with app.units.begin(annotation) as unit:
            await unit.run(lambda: unit.connection.execute(text(sql)))

    statements = ("INSERT INTO items VALUES (1, NULL)", "INSERT INTO items VALUES (1, -1)", "SELECT nothing FROM items")
    for statement in statements:
        with pytest.raises(DBAPIError) as caught:
            await run(statement)
        assert not app.units.transient(caught.value), statement
    own: list[BaseException] = [ConnectionRefusedError(), TimeoutError(), OSError(28, "full"), ValueError(), KeyError()]
    assert [error for error in own if app.units.transient(error)] == []
    await app.close()


async def test_an_application_that_cannot_reach_its_database_in_a_handler(postgresql: Place) -> None:
    """A refused connection counts as the database's if it came through SQLAlchemy, and only then."""
    app = await App.start(postgresql)
    nowhere = App(postgresql.through(1))
    with pytest.raises(Exception, match=r"(?i)connect") as caught:
        async with nowhere.sessions() as session:
            await session.execute(text("SELECT 1"))
    assert app.units.transient(caught.value), repr(caught.value)
    with pytest.raises(ConnectionRefusedError) as elsewhere:
        await asyncio.open_connection("127.0.0.1", 1)
    assert not app.units.transient(elsewhere.value)
    await app.close()
    await nowhere.close()


async def test_a_writer_that_holds_sqlite_for_longer_than_the_busy_timeout(sqlite: Place) -> None:
    """Another process keeps the write lock for six seconds: the unit waits, and its handler never hears of it."""
    app = await App.start(sqlite)
    other = sqlite3.connect(str(app.engine.url.database), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = asyncio.get_running_loop().call_later(6, other.execute, "COMMIT")
    async with asyncio.timeout(20):
        await handle(app, AsyncSession, 1)
    release.cancel()
    other.close()
    assert await whole(app) == 1
    await app.close()


@BOTH
async def test_a_database_that_is_full_or_read_only(sqlite: Place, annotation: type) -> None:
    """No space and no right to write are transient; afterwards the message is handled."""
    app = await App.start(sqlite, sync=annotation is Session)

    async def run(*statements: str) -> None:
        async with app.units.begin(annotation) as unit:
            for statement in statements:
                await unit.run(lambda sql=statement: unit.connection.execute(text(sql)))

    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000)"
    fill = f"{numbers} INSERT INTO items SELECT i, i FROM n"
    for words, statements in {
        "full": ("PRAGMA max_page_count = 1", fill),
        "readonly": ("PRAGMA query_only = 1", "INSERT INTO items VALUES (1, 0)"),
    }.items():
        with pytest.raises(DBAPIError, match=words) as caught:
            await run(*statements)
        assert app.units.transient(caught.value), repr(caught.value)
        await app.units.close()
        await asyncio.to_thread(app.engine.dispose) if annotation is Session else await app.engine.dispose()
    await handle(app, annotation, 1)
    assert await whole(app) == 1
    await app.close()


async def test_a_file_that_cannot_be_opened(sqlite: Place) -> None:
    """A missing folder gives one clear error that names the database."""
    with pytest.raises(DatabaseError, match=r"missing/app\.db: unable to open") as caught:
        await Migrations(sqlite.url.replace("app.db", "missing/app.db")).status()
    assert not isinstance(caught.value, IntegrityError)


async def test_a_wrong_password_is_said_without_the_password(postgresql: Place) -> None:
    """The database refuses the login: the error says where and why, and shows no password."""
    wrong = postgresql.url.replace("s3cr3t", "n0t-it")
    with pytest.raises(DatabaseError, match="password authentication failed") as caught:
        await Migrations(wrong).status()
    assert "n0t-it" not in str(caught.value)
    assert "postgres:***@127.0.0.1" in str(caught.value)


async def test_a_stopped_process_does_not_hold_its_inbox_row_for_ever(postgresql: Place) -> None:
    """The server ends a transaction in which nothing happens any more; a limit of the application's own stays."""
    app = await App.start(postgresql)
    own = App(postgresql, pool={"connect_args": {"server_settings": {"idle_in_transaction_session_timeout": "7s"}}})
    show = text("SHOW idle_in_transaction_session_timeout")
    limits = []
    for one in (app, own):
        async with one.units.begin(AsyncSession) as unit:
            limits.append((await unit.connection.execute(show)).scalar_one())
        async with one.sessions() as session:
            limits.append((await session.execute(show)).scalar_one())
    assert limits == ["5min", "0", "7s", "7s"]
    await app.close()
    await own.close()


async def test_a_database_that_stops_answering_costs_the_pool_nothing(
    postgresql: Place, postgresql_server: Server
) -> None:
    """A rollback that gets no answer is given up, the connection thrown away, and the place in the pool is free."""
    app = await App.start(postgresql)
    async with Proxy(postgresql_server.port) as proxy:
        behind = App(postgresql.through(proxy.port), pool=ONE_CONNECTION)
        async with asyncio.timeout(20):
            async with behind.units.begin(AsyncSession) as unit:
                await insert(unit, 1)
                proxy.frozen = True
            assert behind.engine.pool.checkedout() == 0
        await behind.close()
    assert await whole(app) == 0
    await app.close()
