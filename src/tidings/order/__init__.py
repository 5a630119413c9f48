"""Order per key: an ordered group (`order=True`) has one active worker, and others stand by.

    election   who is active: a small record that it renews, and that others watch
    lanes      which delivery may run next: one at a time for each key, the oldest first
    hands      what becomes of a delivery that ends, and of those behind it
    standby    who stands by, for people to see
    consumer   a group's worker: waits for its turn, pulls, hands over

A message that fails is tried again in place, and the attempts are counted by the engine; one that is dead *parks* its
key. While a key cannot go on its later messages are set aside, durably (`Engine.parked`), so that they hold up nobody.
When the dead letter comes back, redriven or dropped, they follow in their order. Messages without a key are one
sequence. For effects in a database with transactions the order holds whatever dies or freezes: each transaction is
fenced by the epoch of the worker (`Unit.fence`). Without transactions a message may run again after a crash.
"""

from __future__ import annotations

from .behind import explained, parked_behind
from .consumer import OrderedConsumer
from .election import Term, term_of
from .standby import standing_by

__all__ = ["OrderedConsumer", "Term", "explained", "parked_behind", "standing_by", "term_of"]
