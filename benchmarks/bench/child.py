"""One child process: `python -m bench.child JOB`. Publishes, works, answers or asks as its job says."""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from .contenders import Asker, Contender, Publisher, load
from .job import Body, Job, bodies, body, now
from .meter import Meter, percentile, tell
from .proc import cpu_seconds

CHUNK = 1000


def main() -> None:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    contender = load(job.contender)
    if job.role == "work":
        contender.work(job, Meter(job))
    elif job.role == "serve":
        contender.serve(job, lambda: tell({"first": True}))
    elif job.role == "ask":
        asyncio.run(ask(contender, job))
    else:
        asyncio.run(publish(contender, job))


async def publish(contender: Contender, job: Job) -> None:
    async with contender.publisher(job) as publisher:
        if job.role == "fill":
            for begin in range(0, job.count, CHUNK):
                await publisher.many(bodies(min(CHUNK, job.count - begin), job.size))
            tell({"filled": job.count})
        elif job.role == "pace":
            await pace(publisher, job)
        else:
            await timed(publisher, job)


async def timed(publisher: Publisher, job: Job) -> None:
    """Publish with everything acknowledged before the clock stops; a tenth more is published first, to warm up."""
    await spread(publisher, job.how, bodies(max(1, job.count // 10), job.size))
    messages = bodies(job.count, job.size)
    begin, cpu, broker = now(), cpu_seconds(os.getpid()), cpu_seconds(job.broker_pid)
    await spread(publisher, job.how, messages)
    wall = now() - begin
    worker = (cpu_seconds(os.getpid()) - cpu) / job.count * 1e6
    server = (cpu_seconds(job.broker_pid) - broker) / job.count * 1e6
    tell({"rate": job.count / wall, "worker_us": worker, "broker_us": server, "cpu_us": worker + server})


async def spread(publisher: Publisher, how: str, messages: list[Body]) -> None:
    if how == "sequential":
        for message in messages:
            await publisher.one(message)
        return
    for begin in range(0, len(messages), CHUNK):
        chunk = messages[begin : begin + CHUNK]
        if how == "many":
            await publisher.many(chunk)
        else:
            await asyncio.gather(*(publisher.one(message) for message in chunk))


async def pace(publisher: Publisher, job: Job) -> None:
    """Open loop: each message leaves at its time, whatever became of those before it."""
    begin = now() + 0.2
    under_way: set[asyncio.Task[None]] = set()
    for number in range(job.count):
        due = begin + number / job.rate
        await asyncio.sleep(max(0.0, due - now()))
        task = asyncio.create_task(publisher.one(body(number, job.size, sent=due)))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


async def ask(contender: Contender, job: Job) -> None:
    async with contender.asker(job) as asker:
        await asker(body(0, job.size))
        times: list[float] = []
        begin, cpu = now(), cpu_seconds(os.getpid())
        await asyncio.gather(*(_ask(asker, job, times) for _ in range(job.flight)))
        wall = now() - begin
        used = cpu_seconds(os.getpid()) - cpu
    times.sort()
    tell(
        {
            "rate": len(times) / wall,
            "asker_us": used / len(times) * 1e6,
            "p50_ms": percentile(times, 0.5) * 1e3,
            "p99_ms": percentile(times, 0.99) * 1e3,
        }
    )


async def _ask(asker: Asker, job: Job, times: list[float]) -> None:
    for number in range(job.count // job.flight):
        begin = now()
        await asker(body(number, job.size))
        times.append(now() - begin)


if __name__ == "__main__":
    main()
