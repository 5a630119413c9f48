"""The quickest pull loop on nats-py's public API: one callback subscription, and pulls sent ahead."""

from __future__ import annotations

import asyncio
import json

from nats.aio.client import Client
from nats.aio.msg import Msg

from ..job import Job
from . import Seen
from .nats_bare import DECODER, DURABLE, STREAM, Bare, connected

BATCH = 512
EXPIRES = 30.0


class PullLoop:
    """Keeps between half a batch and one and a half asked for; asks anew when a pull has ended by its time."""

    def __init__(self, connection: Client, durable: str, seen: Seen) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{durable}"
        self._inbox = connection.new_inbox()
        self._order = json.dumps({"batch": BATCH, "expires": int(EXPIRES * 1e9)}).encode()
        self._seen = seen
        self._wanted = 0

    async def start(self) -> None:
        await self._connection.subscribe(self._inbox, cb=self._take, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await self._pull()

    async def _pull(self) -> None:
        self._wanted += BATCH
        await self._connection.publish(self._subject, self._order, reply=self._inbox)

    async def _take(self, message: Msg) -> None:
        if not message.reply:
            left = int((message.headers or {}).get("Nats-Pending-Messages", BATCH))
            self._wanted -= left
        else:
            body = DECODER.decode(message.data)
            self._seen(body.sent)
            await self._connection.publish(message.reply, b"+ACK")
            self._wanted -= 1
        if self._wanted <= BATCH // 2:
            await self._pull()


class Callback(Bare):
    def work(self, job: Job, seen: Seen) -> None:
        async def main() -> None:
            async with connected(job) as connection:
                for durable in (DURABLE, *(f"other-{number}" for number in range(job.other_groups))):
                    await PullLoop(connection, durable, seen).start()
                await asyncio.Event().wait()

        asyncio.run(main())


CONTENDER = Callback()
