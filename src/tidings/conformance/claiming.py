"""Who gets what: groups that come late, together, with more, in another version."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from tidings import Bus, Message, claims
from tidings.running import Running

from .app import application, handled, process, reached
from .case import case
from .steps import group, message
from .world import World

A, B = "events.a", "events.b"


class Shop:
    """A bus whose groups note what they get."""

    def __init__(self, world: World, groups: dict[str, list[str]], **options: Any) -> None:
        self.bus = application(world)
        self.got: dict[str, list[str]] = {name: [] for name in groups}
        for name, filters in groups.items():
            self._add(name, filters, options)

    def _add(self, name: str, filters: list[str], options: dict[str, Any]) -> None:
        got = self.got[name]

        async def note(about: Message) -> None:
            got.append(f"{about.subject[-1]}{about.data}")

        self.bus.on(*filters, group=name, **options)(note)

    @property
    def counted(self) -> dict[str, list[str]]:
        return {name: sorted(got) for name, got in self.got.items()}


async def _publish(bus: Bus, *names: str) -> None:
    """`a1` is 1 on `events.a`."""
    for name in names:
        await bus.publish(f"events.{name[0]}", int(name[1:]))


async def _quiet(world: World, running: Running, shop: Shop) -> None:
    await handled(world, running.engine, *shop.got)
    await world.wait(world.moment)
    await handled(world, running.engine, *shop.got)


@case("bus")
async def the_first_group_gets_what_waited(world: World) -> None:
    """Events that nobody wanted wait: the first group that comes for them gets them all, and what comes later."""
    web = application(world, "web")
    shop = Shop(world, {"one": [A]})
    async with process(world, web, work=False):
        await _publish(web, "a1", "a2", "b1")
        async with process(world, shop.bus) as running:
            await _publish(web, "a3")
            await reached(world, lambda: len(shop.got["one"]) == 3, "it gets them")
            await _quiet(world, running, shop)
    assert shop.counted == {"one": ["a1", "a2", "a3"]}


@case("bus")
async def a_late_group_gets_what_comes(world: World) -> None:
    """A group that is added when others have claimed everything gets what comes from now on, and nothing of before;
    neither the publisher nor the other group changes."""
    web = application(world, "web")
    early, both = Shop(world, {"one": [A]}), Shop(world, {"one": [A], "two": [A]})
    async with process(world, web, work=False):
        async with process(world, early.bus) as running:
            await _publish(web, "a1", "a2")
            await _quiet(world, running, early)
        async with process(world, both.bus) as running:
            await _publish(web, "a3")
            await reached(world, lambda: bool(both.got["one"] and both.got["two"]), "both get the new one")
            await _quiet(world, running, both)
    assert early.counted == {"one": ["a1", "a2"]}
    assert both.counted == {"one": ["a3"], "two": ["a3"]}


@case("bus")
async def groups_declared_together_get_all(world: World) -> None:
    """Groups of one application that come for the first time each get all that waited."""
    web = application(world, "web")
    shop = Shop(world, {"one": [A], "two": ["events.>"], "three": [A, B]})
    async with process(world, web, work=False):
        await _publish(web, "a1", "b1")
        async with process(world, shop.bus) as running:
            await reached(world, lambda: sum(map(len, shop.got.values())) == 5, "each gets its share")
            await _quiet(world, running, shop)
    assert shop.counted == {"one": ["a1"], "two": ["a1", "b1"], "three": ["a1", "b1"]}


@case("bus")
async def a_partly_claimed_wildcard(world: World) -> None:
    """A new group on a wildcard of which another group has claimed some subjects gets the backlog of the others only,
    and all that comes."""
    web = application(world, "web")
    early = Shop(world, {"one": [A]})
    both = Shop(world, {"one": [A], "all": ["events.*"]})
    async with process(world, web, work=False):
        async with process(world, early.bus) as running:
            await _publish(web, "a1", "b1", "a2", "b2")
            await _quiet(world, running, early)
        async with process(world, both.bus) as running:
            await _publish(web, "a3", "b3")
            await reached(world, lambda: len(both.got["all"]) == 4, "it gets the rest")
            await _quiet(world, running, both)
    assert both.counted == {"one": ["a3"], "all": ["a3", "b1", "b2", "b3"]}


@case("bus")
async def policies_where_to_start(world: World) -> None:
    """`start="latest"` begins with what comes, `start="earliest"` with all there is, whoever has claimed it."""
    web = application(world, "web")
    first = Shop(world, {"first": [A]})
    late, early = Shop(world, {"late": [A]}, start="latest"), Shop(world, {"early": [A]}, start="earliest")
    async with process(world, web, work=False):
        await _publish(web, "a1", "a2")
        async with (
            process(world, first.bus) as one,
            process(world, late.bus) as two,
            process(world, early.bus) as three,
        ):
            await _publish(web, "a3")
            for running, shop in ((one, first), (two, late), (three, early)):
                await _quiet(world, running, shop)
    assert first.counted | late.counted | early.counted == {
        "first": ["a1", "a2", "a3"],
        "late": ["a3"],
        "early": ["a1", "a2", "a3"],
    }


@case("bus")
async def two_versions_side_by_side(world: World) -> None:
    """An old worker that starts again beside a new one takes nothing away: what only the new version knows is handled
    by it, what both know by one of them, and nothing is lost or dead."""
    web = application(world, "web")
    old, again, new = Shop(world, {"g": [A]}), Shop(world, {"g": [A]}), Shop(world, {"g": [A, B]})
    async with process(world, web, work=False) as running:
        async with process(world, old.bus), process(world, new.bus):
            await _publish(web, "a1", "b1")
            await reached(world, lambda: len(old.got["g"] + new.got["g"]) == 2, "both are handled")
        async with process(world, again.bus, work=False), process(world, new.bus):
            await _publish(web, *(f"{subject}{number}" for number in range(2, 12) for subject in "ab"))
            await reached(world, lambda: len(old.got["g"] + new.got["g"]) == 22, "all are handled")
            await _quiet(world, running, new)
        assert await running.engine.dead_letters() == []
    counts = Counter(old.got["g"] + new.got["g"])
    assert counts == {f"{subject}{number}": 1 for number in range(1, 12) for subject in "ab"}
    assert all(name.startswith("a") for name in old.got["g"])


@case("bus")
async def a_handler_that_listens_to_more(world: World) -> None:
    """A new version of a group with one subject more gets what waited there unclaimed, and repeats nothing."""
    web = application(world, "web")
    old, new = Shop(world, {"g": [A]}), Shop(world, {"g": [A, B]})
    async with process(world, web, work=False):
        async with process(world, old.bus) as running:
            await _publish(web, "a1", "b1", "b2")
            await _quiet(world, running, old)
        async with process(world, new.bus) as running:
            await _publish(web, "a2", "b3")
            await reached(world, lambda: len(new.got["g"]) == 4, "it gets them")
            await _quiet(world, running, new)
    assert (old.counted, new.counted) == ({"g": ["a1"]}, {"g": ["a2", "b1", "b2", "b3"]})


@case("bus")
async def unclaimed_events_are_told(world: World) -> None:
    """What nobody has ever wanted is listed by subject with its number, until somebody claims it, and a removed
    group's events do not become unclaimed."""
    web = application(world, "web")
    shop = Shop(world, {"g": [A]})
    async with process(world, web, work=False) as running:
        await _publish(web, "a1", "b1", "b2")
        ledger, _ = await claims.load(running.engine)
        told = {each.subject: each.count for each in await claims.unclaimed(running.engine, ledger)}
        assert told == {A: 1, B: 2}
        async with process(world, shop.bus) as working:
            await _quiet(world, working, shop)
        await claims.change(running.engine, "g", removed=True)
        ledger, _ = await claims.load(running.engine)
        told = {each.subject: each.count for each in await claims.unclaimed(running.engine, ledger)}
        assert told == {B: 2}


@case("bus")
async def a_paused_group_waits_for_a_person(world: World) -> None:
    """A paused group gets nothing, also after its workers have started again; resumed, it gets all. Others go on."""
    web = application(world, "web")
    shop, again = (Shop(world, {"one": [A], "two": [A]}) for _ in range(2))
    async with process(world, web, work=False) as running:
        async with process(world, shop.bus):
            await claims.change(running.engine, "one", paused=True)
            await _publish(web, "a1")
            await reached(world, lambda: bool(shop.got["two"]), "the other goes on")
        async with process(world, again.bus):
            await _publish(web, "a2")
            await reached(world, lambda: bool(again.got["two"]), "the other goes on")
            await world.wait(world.moment)
            assert (shop.got["one"], again.got["one"]) == ([], [])
            await claims.change(running.engine, "one", paused=False)
            await reached(world, lambda: len(again.got["one"]) == 2, "it gets all")
    assert again.counted["one"] == ["a1", "a2"]


@case("bus")
async def many_processes_declare_at_once(world: World) -> None:
    """Ten processes of an application that start at the same moment agree on its groups, and share its events."""
    web = application(world, "web")
    shops = [Shop(world, {"one": [A], "two": ["events.>"]}) for _ in range(10)]
    async with process(world, web, work=False) as running, AsyncExitStack() as stack:
        await _publish(web, "a1", "b1")
        for shop in shops:
            await stack.enter_async_context(process(world, shop.bus))
        await _publish(web, "a2", "b2")
        await _quiet(world, running, shops[0])
        assert await running.engine.subjects("events.>") == {A: 2, B: 2}
    together = {name: sorted(text for shop in shops for text in shop.got[name]) for name in ("one", "two")}
    assert together == {"one": ["a1", "a2"], "two": ["a1", "a2", "b1", "b2"]}


@case("bus")
async def events_outside_of_a_filter_stay(world: World) -> None:
    """A worker that is handed what its version does not listen to leaves it for one that does: it is neither handled
    nor dead."""
    shop = Shop(world, {"g": [A]})
    engine = await world.engine()
    await engine.declare([group(world, "g", A, B)])
    await engine.publish([message("1", subject=B), message("1", subject=A)])
    async with process(world, shop.bus):
        await reached(world, lambda: bool(shop.got["g"]), "its own is handled")
        await world.wait(world.moment)
        assert await engine.dead_letters() == []
        stats = (await engine.stats()).groups["g"]
        assert stats.waiting + stats.leased + stats.delayed == 1
    assert shop.got["g"] == ["a1"]
