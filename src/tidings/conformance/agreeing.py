"""The ledger of claims and the engine's groups agree, whoever writes at the same moment or dies in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from tidings import claims
from tidings.claims import Wish
from tidings.engine import Engine, Group
from tidings.errors import EngineError

from .case import case
from .steps import finish, message, nothing, publish, take, take_one, texts
from .world import World

A, B = "events.a", "events.b"


class Interrupted:
    """An engine to whose user something happens just before it tells the engine what it wrote into the ledger."""

    def __init__(self, engine: Engine, happens: Callable[[], Awaitable[object]]) -> None:
        self._engine = engine
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def declare(self, groups: list[Group]) -> None:
        await self._happens()
        await self._engine.declare(groups)

    async def forget(self, name: str) -> None:
        await self._happens()
        await self._engine.forget(name)


async def _die(world: World, engine: Engine, what: Callable[[Any], Awaitable[object]]) -> None:
    """Do something with the engine, and die when the ledger is written and the engine not told yet."""
    with suppress(EngineError):
        await what(Interrupted(engine, lambda: world.crash(engine)))


@case("seam")
async def a_pause_beside_a_start_holds(world: World) -> None:
    """A process that starts in the moment in which a person pauses its group does not resume it, nor does one that
    starts while it is resumed leave it paused."""
    engine, other = await world.engine(), await world.engine()
    wishes = [Wish("g", (A,))]
    await claims.declare(engine, wishes, lease=world.lease)
    for paused, body in ((True, "held"), (False, "free")):
        pending = [paused]

        async def change(pending: list[bool] = pending) -> None:
            if pending:
                await claims.change(other, "g", paused=pending.pop())

        starting: Any = Interrupted(engine, change)
        ledger = await claims.declare(starting, wishes, lease=world.lease)
        assert ledger.groups["g"].paused is paused
        await publish(engine, body, subject=A)
        if paused:
            await nothing(world, engine, "g")
    assert texts(await take(engine, "g", 2)) == ["held", "free"]


@case("seam")
async def a_removal_beside_a_start_holds(world: World) -> None:
    """A process that starts with other groups in the moment in which a person removes one does not bring it back."""
    engine, other = await world.engine(), await world.engine()
    await claims.declare(engine, [Wish("g", (A,))], lease=world.lease)
    pending = [True]

    async def remove() -> None:
        if pending:
            await claims.change(other, "g", removed=pending.pop())

    starting: Any = Interrupted(engine, remove)
    await claims.declare(starting, [Wish("other", (A,))], lease=world.lease)
    assert set((await engine.stats()).groups) == {"other"}


@case("seam")
async def a_narrowing_cut_off_is_finished(world: World) -> None:
    """Who dies while a person takes a filter from a group leaves it to the next process to finish: the group gets what
    it still listens to and nothing else, and misses nothing of that."""
    keeper, doomed = await world.engine(), await world.engine()
    await claims.declare(keeper, [Wish("g", (A, B))], lease=world.lease)
    await publish(keeper, "before", subject=B)
    await finish(keeper, [await take_one(keeper, "g")])
    await keeper.stop_pulling("g")
    await _die(world, doomed, lambda engine: claims.restart(engine, "g", name="g", filters=[A]))
    await keeper.publish([message("b", subject=B), message("a", subject=A)])
    await claims.mend(keeper)
    await keeper.publish([message("b2", subject=B), message("a2", subject=A)])
    got = await take(keeper, "g", 2)
    assert texts(got) == ["a", "a2"]
    await finish(keeper, got)
    await nothing(world, keeper, "g")


@case("seam")
async def a_removal_cut_off_is_finished(world: World) -> None:
    """Who dies while a person removes or renames a group leaves nothing of the old one behind."""
    keeper = await world.engine()
    await claims.declare(keeper, [Wish("one", (A,)), Wish("two", (A,))], lease=world.lease)
    await _die(world, await world.engine(), lambda engine: claims.change(engine, "one", removed=True))
    await _die(world, await world.engine(), lambda engine: claims.restart(engine, "two", name="new", filters=[A]))
    await claims.mend(keeper)
    assert set((await keeper.stats()).groups) == {"new"}
    await publish(keeper, "a", subject=A)
    assert texts(await take(keeper, "new", 1)) == ["a"]


@case("seam")
async def a_lease_is_its_groups_own(world: World) -> None:
    """Processes with other settings change no lease but those of their own groups, and shorten none while somebody
    works for the group: what a dead process held comes back after the group's own lease."""
    engine, dying = await world.engine(), await world.engine()
    await claims.declare(engine, [Wish("g", (A,))], lease=world.lease)
    await claims.declare(dying, [Wish("slow", (B,))], lease=1000 * world.lease)
    await claims.mend(dying)
    await publish(engine, "a", subject=A)
    held = await take_one(dying, "g")
    ledger = await claims.declare(engine, [Wish("g", (A,))], lease=world.lease / 100)
    assert ledger.groups["g"].lease == world.lease
    await world.crash(dying)
    await world.wait(world.lease)
    again = await take_one(engine, "g")
    assert (again.entry, again.deliveries) == (held.entry, 2)
    await finish(engine, [again])
    assert [each.lease for each in ledger.living()] == [world.lease, 1000 * world.lease]
