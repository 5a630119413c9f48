"""The order of one call's messages where a message can be lost on the way: in a cluster, over a wire that loses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from conformance.nats_world import Cluster
from tidings.engine import Outgoing
from tidings.engines.nats.api import JetStream
from tidings.engines.nats.calls import Item
from tidings.engines.nats.connection import Address, NatsPy, OnDenied, OnLost
from tidings.engines.nats.layout import Layout
from tidings.engines.nats.link import Link
from tidings.engines.nats.outbound import Parcel
from tidings.engines.nats.pace import Pace
from tidings.engines.nats.sending import LARGEST, Sender
from tidings.engines.nats.streams import prepare
from tidings.errors import Closed, Unconfirmed

_numbers = itertools.count(1)


class Leaky(NatsPy):
    """A connection that loses each of some messages once, as the wire between two servers does when it breaks."""

    losing: ClassVar[set[bytes]] = set()

    def send(self, parcels: Sequence[Parcel]) -> None:
        super().send([parcel for parcel in parcels if not self._lost_one(parcel)])

    def _lost_one(self, parcel: Parcel) -> bool:
        if parcel[3] not in self.losing:
            return False
        self.losing.discard(parcel[3])
        return True


async def leaky(server: str, address: Address, name: str, on_lost: OnLost, on_denied: OnDenied) -> Leaky:
    connection = Leaky(server, address, on_lost, on_denied)
    await connection.connect(name)
    return connection


@dataclass
class Place:
    """A namespace on the cluster, and the way there."""

    layout: Layout
    link: Link
    js: JetStream

    @property
    def subject(self) -> str:
        return self.layout.roots[0].replace(">", "a")

    def sender(self, fsyncs: bool) -> Sender:
        return Sender(self.js, self.layout, Pace(fsyncs))

    def items(self, first: int, count: int) -> list[Item]:
        found = [
            Outgoing(self.subject, str(number).encode(), {}, str(number)) for number in range(first, first + count)
        ]
        return [Item(message, "") for message in found]

    async def log(self) -> list[int]:
        """What is stored, in its order."""
        found: list[int] = []
        async for page in self.js.pages(self.layout.events, self.layout.roots[0], 1):
            found += [int(frame.body) for frame in page]
        return found


@pytest.fixture(params=[3, 1], ids=["three copies", "one copy"])
async def place(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    await cluster.start()
    layout = Layout(f"calls{next(_numbers)}", (f"calls{request.param}.>",))
    link = Link(cluster.locate, connector=leaky)
    await link.open(20)
    place = Place(layout, link, JetStream(link, 2.0))
    await prepare(JetStream(link, 20.0), layout, request.param)
    place.js.replicated = request.param > 1
    yield place
    await link.close()
    Leaky.losing.clear()
    await cluster.leave(layout.events, layout.control)


@pytest.fixture(params=[True, False], ids=["fsync", "no fsync"])
def sender(place: Place, request: pytest.FixtureRequest) -> Sender:
    return place.sender(request.param)


@pytest.mark.parametrize("count", [2, 5, 12, 30])
async def test_one_of_several_is_lost(place: Place, sender: Sender, count: int) -> None:
    """When one message of a call is lost on the way, those behind it are not stored before it."""
    for turn, lost in enumerate((0, 1, count - 2)):
        first = turn * count
        Leaky.losing = {str(first + lost).encode()}
        stored = await sender.send(place.items(first, count))
        assert not Leaky.losing
        assert [place.position for place in stored] == list(range(first + 1, first + count + 1))
    assert await place.log() == list(range(3 * count))


async def test_one_of_several_is_lost_behind_a_refused_batch(place: Place, sender: Sender) -> None:
    """A batch with a known id goes one by one: there too nothing overtakes a message that is lost on the way."""
    await sender.send(place.items(3, 1))
    Leaky.losing = {b"7"}
    stored = await sender.send(place.items(0, 30))
    assert [place.duplicate for place in stored] == [n == 3 for n in range(30)]
    assert await place.log() == [3, 0, 1, 2, *range(4, 30)]


async def test_a_lost_batch_of_a_large_call(place: Place, sender: Sender) -> None:
    """When the last message of a batch is lost, which has it stored, the next batch of its call waits for it."""
    Leaky.losing = {str(LARGEST - 1).encode(), str(2 * LARGEST - 1).encode()}
    await sender.send(place.items(0, 3 * LARGEST))
    assert not Leaky.losing
    assert await place.log() == list(range(3 * LARGEST))


async def test_others_pass_a_call_that_waits(place: Place) -> None:
    """While a call waits for one of its messages that was lost, what others publish is stored."""
    sender = place.sender(False)
    Leaky.losing = {b"2"}
    call = sender.send(place.items(0, 3))
    await sender.send(place.items(10, 1))
    assert not call.done()
    await call
    assert [number for number in await place.log() if number != 10] == [0, 1, 2]


async def test_a_call_that_fails_leaves_no_gap(place: Place, sender: Sender) -> None:
    """When one message of a call is refused, those behind it are not stored: repeated, the call is in its order."""
    several = place.items(0, 5)
    several[2].lines = "Nats-Expected-Last-Sequence: 99\r\n"
    with pytest.raises(Exception, match="wrong last sequence"):
        await sender.send(several)
    assert await place.log() == [0, 1]
    await sender.send(place.items(0, 5))
    assert await place.log() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("end", [Link.close, Link.abandon])
async def test_closing_tells_what_may_be_stored(
    place: Place, cluster: Cluster, end: Callable[[Link], Awaitable[None]]
) -> None:
    """Who has sent something when the engine is closed is told `Unconfirmed`, who has not `Closed`."""
    sender = place.sender(False)
    large = [Outgoing(place.subject, b"x" * 900_000, {}, f"large-{number}") for number in range(6)]
    for node in cluster.nodes:
        node.freeze()
    calls = [sender.send([Item(message, "")]) for message in large]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await end(place.link)
    for node in cluster.nodes:
        node.thaw()
    ends = [type(call.exception()) for call in calls]
    assert ends == [Unconfirmed] * 5 + [Closed]
