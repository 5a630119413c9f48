"""Staged messages that the broker does not take, as a person meets them; on SQLite files and a PostgreSQL server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from sql_app import App, message
from tidings.cli.root import commands
from tidings.doctor import Finding, examine

if TYPE_CHECKING:
    from databases import Place

pytest_plugins = ("databases",)


@pytest_asyncio.fixture
async def app(database: Place) -> AsyncIterator[App]:
    """Its outbox holds m1 and m2, which were refused, and m3, which was not tried yet."""
    made = await App.start(database)
    await made.stage(1, 2, 3)
    await made.end_leases()
    assert len(await made.units.unsent(2)) == 2
    for number in (1, 2):
        await made.units.mark_refused(message(number), f"too large: {number}")
    yield made
    await made.close()


async def call(app: App, *words: str, input: str | None = None) -> Result:
    """`tidings db …` on the application's database."""
    command = ["db", *words, "--database-url", app.place.url]
    return await asyncio.to_thread(CliRunner().invoke, commands, command, input=input)


async def listed(app: App) -> Any:
    result = await call(app, "outbox", "ls", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


async def ids(app: App) -> list[str]:
    return [row[0] for row in await app.sql("SELECT message_id FROM tidings_outbox ORDER BY position")]


async def test_it_is_listed_with_what_the_broker_said(app: App) -> None:
    """Oldest first, with id, subject, size and words; `db status` counts them; a row that merely waits is not among
    them."""
    found = await listed(app)
    assert found["total"] == 2
    assert [(one["id"], one["subject"], one["size"], one["why"]) for one in found["refused"]] == [
        ("m1", "events.a", 4, "too large: 1"),
        ("m2", "events.a", 4, "too large: 2"),
    ]
    assert all(0 <= one["age"] < 600 for one in found["refused"])
    text = await call(app, "outbox", "ls", "--limit", "1")
    assert "too large: 1" in text.stdout
    assert "too large: 2" not in text.stdout
    assert "1 more" in text.stderr
    status = await call(app, "status")
    assert "refused  2 staged message(s)" in status.stdout
    assert "tidings db outbox ls" in status.stdout


async def test_status_tells_the_age_of_what_waits(app: App) -> None:
    """`db status --json` has the seconds for which the oldest event has waited that is only not sent yet."""
    await app.sql("UPDATE tidings_outbox SET staged_at = staged_at - 7200 WHERE refused IS NULL")
    status = json.loads((await call(app, "status", "--json")).stdout)
    assert 7200 <= status["oldest_unsent"] < 9000
    assert "unsent   the oldest event waits for 7,2" in (await call(app, "status")).stdout


async def test_doctor_tells_of_it(app: App, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the count, the oldest one and its error, and the commands; the age of the outbox is that of what waits."""
    await app.sql("UPDATE tidings_outbox SET staged_at = staged_at - 7200 WHERE refused IS NOT NULL")
    where = tmp_path_factory.mktemp("broker")
    found = {one.subject: one for one in await examine(f"embedded:{where}", "", app.place.url)}
    refused: Finding = found["outbox refused"]
    assert refused.state == "warn"
    assert refused.text.startswith("2 message(s), the oldest for 7,2")
    assert "m1 on events.a: too large: 1" in refused.text
    assert "tidings db outbox drop" in refused.mend
    assert found["outbox"].state == "ok"
    assert (await call(app, "outbox", "drop", "--all", "--yes")).exit_code == 0
    assert "outbox refused" not in {one.subject for one in await examine(f"embedded:{where}", "", app.place.url)}


async def test_retry_has_it_sent_now(app: App) -> None:
    """The next look at the outbox finds what was named, and nothing else of what was refused; a dry run changes
    nothing."""
    assert len(await app.units.unsent(10)) == 1  # m3
    assert "1 would be sent again" in (await call(app, "outbox", "retry", "m2", "--dry-run")).stdout
    assert await app.units.unsent(10) == []
    result = await call(app, "outbox", "retry", "m2", "--json")
    assert json.loads(result.stdout) == {"selected": 1, "done": 1}
    assert await app.units.unsent(10) == [message(2)]
    assert (await call(app, "outbox", "retry", "--all")).exit_code == 0
    assert await app.units.unsent(10) == [message(1), message(2)]


async def test_drop_asks_and_takes_only_what_was_refused(app: App) -> None:
    """Where nobody can be asked it refuses without --yes; a dry run drops nothing; what waits stays."""
    refused = await call(app, "outbox", "drop", "--all")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert "2 would be dropped" in (await call(app, "outbox", "drop", "--all", "--dry-run")).stdout
    assert await ids(app) == ["m1", "m2", "m3"]
    assert "1 dropped" in (await call(app, "outbox", "drop", "m1", "--yes")).stdout
    assert await ids(app) == ["m2", "m3"]
    assert (await call(app, "outbox", "drop", "--all", "-y")).exit_code == 0
    assert await ids(app) == ["m3"]


async def test_what_is_not_there_is_said(app: App) -> None:
    """An id that was never refused is exit code 5 and changes nothing, also beside one that was; so is nothing at all.
    Neither ids nor --all is wrong usage."""
    result = await call(app, "outbox", "drop", "m1", "m3", "--yes")
    assert result.exit_code == 5
    assert "m3" in result.stderr
    assert await ids(app) == ["m1", "m2", "m3"]
    assert (await call(app, "outbox", "retry")).exit_code == 2
    await call(app, "outbox", "drop", "--all", "--yes")
    assert (await call(app, "outbox", "retry", "--all")).exit_code == 5
    assert await listed(app) == {"total": 0, "refused": []}


async def test_tables_that_are_missing(database: Place) -> None:
    """It names the command that makes them."""
    result = await asyncio.to_thread(
        CliRunner().invoke, commands, ["db", "outbox", "ls", "--database-url", database.url]
    )
    assert result.exit_code == 1
    assert "tidings db upgrade" in result.stderr
