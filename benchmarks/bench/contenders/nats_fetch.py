"""The loop that most people write on nats-py: fetch, handle, ack."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from nats.errors import TimeoutError as NothingCame

from ..job import Job
from . import Seen
from .nats_bare import DECODER, DURABLE, STREAM, SUBJECT, Bare, connected


class Fetch(Bare):
    def work(self, job: Job, seen: Seen) -> None:
        async def main() -> None:
            async with connected(job) as connection:
                subscription = await connection.jetstream().pull_subscribe(SUBJECT, DURABLE, STREAM)
                while True:
                    with suppress(NothingCame):
                        for message in await subscription.fetch(512, timeout=5):
                            body = DECODER.decode(message.data)
                            seen(body.sent)
                            await message.ack()

        asyncio.run(main())


CONTENDER = Fetch()
