"""The time for which a delivery is in the hands of one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ...clock import Clock
from ...engine import Delivery
from .link import Link

SAFE: Final = 5 / 6
"""Part of the lease after which nothing is settled any more."""


async def renew(link: Link, clock: Clock, deliveries: Iterable[Delivery], lease: Callable[[str], float]) -> None:
    """Start the leases that have not ended again; `lease` says for how long, by group.

    A deadline moves, to what it would be had the server read of it when it was sent, once it is known that it was read
    in time: what comes after the end of a lease counts for whoever has the message by then. Raises `Disconnected`.
    """
    sent = clock.monotonic()
    ours = [delivery for delivery in deliveries if is_ours(delivery, sent)]
    if not ours:
        return
    link.send_each([delivery.token.reply for delivery in ours], b"+WPI")
    await link.flush()
    read = clock.monotonic()
    for delivery in ours:
        if is_ours(delivery, read):
            delivery.deadline = sent + lease(delivery.group) * SAFE


def is_ours(delivery: Delivery, now: float) -> bool:
    """Whether it is held here and not settled."""
    return not delivery.token.settled and now < delivery.deadline
