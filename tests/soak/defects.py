"""Crash points and planted defects, armed in a process of the workload by its environment.

`SOAK_CRASH=POINT@N` kills the process (or drops an answer) the Nth time it comes to the point, once in a run.
`SOAK_DEFECT=NAME` breaks the framework as told in `DEFECTS`. Both work on the product from outside, by replacing its
functions in this process: nothing of it is in the product. A crash point alone must change nothing for the checker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tidings.engines.nats.publish
import tidings.engines.nats.sending
import tidings.engines.nats.settle
import tidings.order.hands
import tidings.order.lanes
import tidings.outbox
import tidings.retry
import tidings.sql.hooks
import tidings.sql.store
import tidings.sql.units
import tidings.work.each
import tidings.work.gathering
import tidings.work.handling
from tidings.engine import Dead, Done, Stored
from tidings.engines.nats.link import Disconnected
from tidings.errors import DecodeError

# What is replaced, as what it is here: things without types.
publish: Any = tidings.engines.nats.publish
settle: Any = tidings.engines.nats.settle
handling: Any = tidings.work.handling
outbox: Any = tidings.outbox
retry: Any = tidings.retry
store: Any = tidings.sql.store
hooks: Any = tidings.sql.hooks
units: Any = tidings.sql.units
each: Any = tidings.work.each
gathering: Any = tidings.work.gathering
sending: Any = tidings.engines.nats.sending
order_lanes: Any = tidings.order.lanes
order_hands: Any = tidings.order.hands


def arm(folder: Path) -> None:
    """Do what the environment says."""
    if os.environ.get("SOAK_HURRY"):
        init = outbox.Relay.__init__
        store.STAGED_FOR = 0.2
        outbox.Relay.__init__ = lambda *given, **options: init(*given, **{**options, "lease": 1.8})
    point, _, number = os.environ.get("SOAK_CRASH", "").partition("@")
    crash = Crash(folder / "crashed", int(number or 1))
    if point:
        POINTS[point](crash)
    if name := os.environ.get("SOAK_DEFECT"):  # around the crash point: what it does comes before
        DEFECTS[name](crash)


class Crash:
    """Something that happens once in a run, the Nth time it could."""

    def __init__(self, mark: Path, number: int) -> None:
        self._mark = mark
        self._left = number

    def due(self) -> bool:
        self._left -= 1
        if self._left:
            return False
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def here(self) -> None:
        """`kill -9` of this process, if it is time."""
        if self.due():
            os.kill(os.getpid(), signal.SIGKILL)


# Crash points ---------------------------------------------------------------------------------------------------------


def before_commit(crash: Crash) -> None:
    commit = units.SqlUnit.commit

    async def killed(self: Any) -> None:
        crash.here()
        await commit(self)

    units.SqlUnit.commit = killed


def after_commit(crash: Crash) -> None:
    commit = units.SqlUnit.commit

    async def killed(self: Any) -> None:
        await commit(self)
        crash.here()

    units.SqlUnit.commit = killed


def before_sending(crash: Crash) -> None:
    """Between the commit and the outbox being sent."""
    send = outbox.Relay._send

    async def killed(self: Any, batch: list[Any]) -> Any:
        if batch:
            crash.here()
        return await send(self, batch)

    outbox.Relay._send = killed


def after_dead_letter(crash: Crash) -> None:
    """Between the dead letter being written and its original being acknowledged."""
    acknowledge = settle.Settler._acknowledge

    async def killed(self: Any, outcomes: Any, gone: Any) -> None:
        if any(isinstance(outcome, Dead) for outcome in outcomes):
            crash.here()
        await acknowledge(self, outcomes, gone)

    settle.Settler._acknowledge = killed


def answer_lost(crash: Crash) -> None:
    """The server's answer to a publish does not arrive; the framework has to ask again."""
    answered = sending.Sender.answered

    def lost(self: Any, flight: Any, answer: Any) -> None:
        answered(self, flight, Disconnected("the answer was lost") if crash.due() else answer)

    sending.Sender.answered = lost


def terminated(crash: Crash) -> None:
    """SIGTERM while the slow operation is being handled, and no grace."""
    run = handling.Handling.run

    async def ended(self: Any, message: Any, unit: Any) -> Any:
        if getattr(message.data, "kind", "") == "slow" and message.group == "apply" and crash.due():
            asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)
        return await run(self, message, unit)

    handling.Handling.run = ended


# Defects --------------------------------------------------------------------------------------------------------------


def ack_before_commit(crash: Crash) -> None:
    """The message is acknowledged before the handler runs."""
    handle = handling.Handling.handle

    async def early(self: Any, delivery: Any, message: Any) -> Any:
        await self.publisher.engine.settle([Done(delivery)])
        return await handle(self, delivery, message)

    handling.Handling.handle = early


def no_inbox(crash: Crash) -> None:
    """Nobody remembers what was handled."""
    store.Store.fresh = lambda self, connection, keys: set(keys)


def inbox_apart(crash: Crash) -> None:
    """The inbox mark is committed before the effect."""
    fresh = units.SqlUnit.fresh

    async def apart(self: Any, keys: Any) -> Any:
        new = await fresh(self, keys)
        connection = await self.connection.connection()
        connection.sync_connection.info.pop(hooks._HANDLED)  # else it is refused
        await connection.exec_driver_sql("COMMIT")
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        return new

    units.SqlUnit.fresh = apart


def marked_before_sending(crash: Crash) -> None:
    """The outbox forgets a follow-up before it is in the log."""
    send = outbox.Relay._send

    async def early(self: Any, batch: list[Any]) -> Any:
        if batch:
            await self.units.mark_sent(batch)
        return await send(self, batch)

    outbox.Relay._send = early


def staged_nowhere(crash: Crash) -> None:
    """Follow-ups are sent after the commit and were never part of it."""

    async def nothing(self: Any, messages: Any) -> None:
        return

    units.SqlUnit.stage = nothing


def no_sweep(crash: Crash) -> None:
    """What a killed process left in the outbox is found by nobody."""

    async def nobody(self: Any) -> None:
        return

    outbox.Relay._sweep_all = nobody


def new_id_on_retry(crash: Crash) -> None:
    """Each try of a publish is a message of its own to the server."""
    parcel = sending.Sender._parcel

    def renamed(self: Any, item: Any, reply: str, more: str) -> Any:
        subject, reply, lines, body = parcel(self, item, reply, more)
        _, _, others = lines.partition("\r\n")
        return subject, reply, f"Nats-Msg-Id: {uuid.uuid4().hex}\r\n{others}", body

    sending.Sender._parcel = renamed


def acknowledged_unsent(crash: Crash) -> None:
    """One publish in twenty returns without having sent anything."""
    real, count = publish.Publisher.publish, iter(range(1_000_000))

    async def forgetful(self: Any, messages: Any, limit: int) -> Any:
        if next(count) % 20 == 10 and messages[0].subject == "events.soak.placed":
            return [Stored(1) for _ in messages]
        return await real(self, messages, limit)

    publish.Publisher.publish = forgetful


def ack_on_decode_error(crash: Crash) -> None:
    """What cannot be decoded is taken for handled."""
    read = handling.Handling.read

    def careless(self: Any, delivery: Any) -> Any:
        try:
            self.decode(delivery)
        except DecodeError:
            return Done(delivery)
        return read(self, delivery)

    handling.Handling.read = careless


def ack_on_handler_error(crash: Crash) -> None:
    """What fails is taken for handled."""
    handling.Handling.judged = lambda self, delivery, error: Done(delivery)


def ack_on_cancel(crash: Crash) -> None:
    """What is cancelled when the worker stops is taken for handled."""
    each.Release = gathering.Release = lambda delivery, delay=0.0: Done(delivery)


def no_retry(crash: Crash) -> None:
    """The first failure is the last."""
    retry.RetryPolicy.delay = lambda self, failed: None


def dead_letter_after_ack(crash: Crash) -> None:
    """The original is acknowledged first; a crash before the dead letter is written loses it."""
    once = settle.Settler._once

    async def turned(self: Any, outcomes: list[Any]) -> None:
        for one in outcomes:
            if isinstance(one, Dead):
                await self._link.publish(one.delivery.token.reply, b"+ACK")
                await self._link.flush()
                crash.here()
        await once(self, outcomes)

    settle.Settler._once = turned


def rewritten_bytes(crash: Crash) -> None:
    """Dead letters hold what the framework understood, not what was sent."""
    copied = settle.copied

    def changed(entry: Any, origin: Any, room: int) -> Any:
        body, headers = copied(entry, origin, room)
        return body.replace(b":", b": "), headers

    settle.copied = changed


def dropped_headers(crash: Crash) -> None:
    """Dead letters have lost their headers."""
    copied = settle.copied

    def bare(entry: Any, origin: Any, room: int) -> Any:
        body, headers = copied(entry, origin, room)
        return body, {name: value for name, value in headers.items() if not name.startswith("ce-")}

    settle.copied = bare


def unordered_key(crash: Crash) -> None:
    """Every message of an ordered group is taken for one of a key of its own."""
    order_lanes.key_of = order_hands.key_of = lambda entry: str(entry.position)


def child_left_behind(crash: Crash) -> None:
    """A process stays after the workers have gone."""
    subprocess.Popen(["sleep", "60"], start_new_session=True)


def rollback_ignored(crash: Crash) -> None:
    """What a failed handler wrote is committed."""
    run = handling.Handling.run

    async def committed(self: Any, message: Any, unit: Any) -> Any:
        try:
            return await run(self, message, unit)
        except ValueError:
            if unit is not None and not hasattr(unit, "commit"):
                return None  # one among others: its inbox mark is committed with theirs
            if unit is not None:
                await unit.commit()
            raise

    handling.Handling.run = committed


POINTS: dict[str, Callable[[Crash], None]] = {
    point.__name__: point
    for point in (before_commit, after_commit, before_sending, after_dead_letter, answer_lost, terminated)
}
DEFECTS: dict[str, Callable[[Crash], None]] = {
    defect.__name__: defect
    for defect in (
        ack_before_commit,
        no_inbox,
        inbox_apart,
        marked_before_sending,
        staged_nowhere,
        no_sweep,
        new_id_on_retry,
        acknowledged_unsent,
        ack_on_decode_error,
        ack_on_handler_error,
        ack_on_cancel,
        no_retry,
        dead_letter_after_ack,
        rewritten_bytes,
        dropped_headers,
        unordered_key,
        child_left_behind,
        rollback_ignored,
    )
}
