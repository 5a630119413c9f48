"""Children of one terminal: started, heard, restarted, stopped in order, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from started import gone
from tidings import lifeline, processes
from tidings.processes import Children, Program, describe, supervise

PATIENCE = 20.0

WAIT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); {then}; signal.pause()"
READY = "from tidings import lifeline; lifeline.hold(); lifeline.tell_ready()"


def script(name: str, code: str, stage: int = 0, grace: float = PATIENCE) -> Program:
    return Program(name, ("-c", code), stage=stage, grace=grace)


def waiting(name: str, then: str = READY, stage: int = 0) -> Program:
    """A program that says that it is ready and ends when it is asked to."""
    return script(name, WAIT.format(then=then), stage)


class Heard:
    """Lines that were said, and waiting for one of them."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._more = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._more.set()

    def text(self) -> str:
        return "\n".join(f"{name}: {line}" for name, line in self.lines)

    async def until(self, words: str, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while sum(words in line for _, line in self.lines) < times:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def running(*programs: Program) -> AsyncIterator[tuple[Children, Heard]]:
    heard = Heard()
    children = Children(programs, heard)
    children.start()
    try:
        yield children, heard
    finally:
        await children.stop()
        assert [child.pid for child in children] == [None] * len(programs)


async def eventually(what: Callable[[], bool], seconds: float = PATIENCE) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.01)


async def test_lines_come_with_the_name_of_who_said_them() -> None:
    """stdout and stderr alike, the last line also without its end."""
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.stdout.write('three'); sys.stdout.flush()"
    async with running(script("a", code)) as (_, heard):
        await heard.until("ended with exit code 0")
    assert [line for name, line in heard.lines if name == "a"][:3] == ["one", "two", "three"]


async def test_output_that_is_no_text_and_has_no_end_is_passed_on() -> None:
    """Bytes are replaced, a line of a megabyte comes in pieces, nothing is lost and nobody waits for ever."""
    code = "import sys; sys.stdout.buffer.write(b'\\xff' * 10 + b'x' * 1_000_000)"
    async with running(script("a", code)) as (_, heard):
        await heard.until("ended with exit code 0")
    said = [line for _, line in heard.lines if "ended" not in line]
    assert sum(line.count("x") for line in said) >= 1_000_000
    assert max(map(len, said)) <= 2 * 64 * 1024
    assert said[0].startswith("\ufffd" * 10)


async def test_a_killed_child_is_replaced_within_a_second() -> None:
    """kill -9 is told, and another process does its work; a slow machine has as much time again as for the first."""
    began = time.monotonic()
    async with running(waiting("a")) as (children, heard):
        await children.ready()
        first_start = time.monotonic() - began
        (child,) = children
        first = child.pid
        assert first is not None
        began = time.monotonic()
        os.kill(first, signal.SIGKILL)
        await heard.until("was killed by SIGKILL; starting it again in 0.2 s")
        await eventually(lambda: child.pid not in (None, first))
        assert time.monotonic() - began < 1.0 + first_start
        assert child.restarts == 1


async def test_restarts_come_ever_more_slowly() -> None:
    """What fails at once does not fill the terminal: the pause doubles."""
    async with running(script("a", "raise SystemExit(1)")) as (_, heard):
        await heard.until("ended with exit code 1", times=4)
    pauses = [line.split(" in ")[1] for _, line in heard.lines if "again" in line]
    assert pauses[:4] == ["0.2 s", "0.4 s", "0.8 s", "1.6 s"]


async def test_a_life_of_some_length_makes_the_pause_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause counts failures in a row, not failures of a whole day."""
    monkeypatch.setattr(processes, "CALM", 0.0)
    async with running(script("a", f"{READY}; raise SystemExit(1)")) as (_, heard):
        await heard.until("ended with exit code 1", times=3)
    assert {line.split(" in ")[1] for _, line in heard.lines if "again" in line} == {"0.2 s"}


async def test_a_long_life_that_was_never_ready_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs long to find out that it cannot start is still tried ever more slowly."""
    monkeypatch.setattr(processes, "CALM", 0.0)
    async with running(script("a", "raise SystemExit(1)")) as (_, heard):
        await heard.until("ended with exit code 1", times=3)
    assert [line.split(" in ")[1] for _, line in heard.lines if "again" in line] == ["0.2 s", "0.4 s", "0.8 s"]


async def test_who_is_killed_again_and_again_comes_back_at_once() -> None:
    """A worker that had worked for a second is replaced after the first pause, every time."""
    works_a_while = f"{READY}; import time; time.sleep(1.1); print('at work', flush=True)"
    async with running(waiting("a", works_a_while)) as (children, heard):
        (child,) = children
        for n in range(1, 4):
            await heard.until("at work", times=n)
            killed = child.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await heard.until("was killed by SIGKILL", times=n)
    assert {line.split(" in ")[1] for _, line in heard.lines if "again" in line} == {"0.2 s"}


async def test_stages_stop_one_after_the_other() -> None:
    """The second stage is asked to end only when the first has ended, however slowly it does."""
    slow = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(0)))"
    first = script("web", f"{slow}; {READY}; signal.pause()", stage=0)
    async with running(first, waiting("worker", stage=1)) as (children, heard):
        await children.ready()
        await children.stop()
    assert [name for name, line in heard.lines if line == "stopped"] == ["web", "worker"]


async def test_what_does_not_stop_is_killed_after_its_grace() -> None:
    """A child that ignores the request holds nobody up for ever."""
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; signal.pause()"
    async with running(script("a", stubborn, grace=0.3)) as (children, heard):
        await children.ready()
        await children.stop()
    assert "still there after 0.3 s: killed" in heard.text()
    assert "stopped, was killed by SIGKILL" in heard.text()


async def test_nothing_is_started_again_once_it_is_stopped() -> None:
    """Also not what was just waiting for its next start."""
    async with running(script("a", "raise SystemExit(1)")) as (children, heard):
        await heard.until("starting it again in 0.8 s")
        await children.stop()
    (child,) = children
    assert child.restarts == 2


async def test_killing_takes_what_the_child_has_started() -> None:
    """A handler's own subprocess does not survive when everything is ended by force."""
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print('pid', p.pid, flush=True); p.wait()"
    async with running(script("a", code)) as (children, heard):
        await heard.until("pid ")
        pid = int(heard.lines[0][1].split()[1])
        children.kill()
        await eventually(lambda: gone(pid))


async def test_unusable_programs_end_it_all() -> None:
    """Exit code 2 before anything worked: it will not get better by itself, so its code is the result."""

    async def begin() -> bool:
        await asyncio.Event().wait()
        return True

    heard = Heard()
    children = Children([waiting("good"), script("bad", "raise SystemExit(2)")], heard)
    async with asyncio.timeout(PATIENCE):
        assert await supervise(children, begin, lambda line: None) == 2
    assert "bad: it cannot work like this" in heard.text()
    assert [child.pid for child in children] == [None, None]


async def test_supervise_ends_when_begin_has_enough() -> None:
    """`begin` saying False stops everything with exit code 0, what it raises is raised."""
    children = Children([waiting("a")], Heard())

    async def enough() -> bool:
        await children.ready()
        return False

    assert await supervise(children, enough, lambda line: None) == 0

    async def broken() -> bool:
        raise RuntimeError("no broker")

    again = Children([waiting("a")], Heard())
    with pytest.raises(RuntimeError, match="no broker"):
        await supervise(again, broken, lambda line: None)
    assert [child.pid for child in again] == [None]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_in_order(number: signal.Signals) -> None:
    """Ctrl-C, the platform's SIGTERM and a closed terminal are the same request."""
    heard = Heard()
    children = Children([waiting("a"), waiting("b", stage=1)], heard)

    async def begin() -> bool:
        await children.ready()
        os.kill(os.getpid(), number)
        return True

    assert await supervise(children, begin, lambda line: None) == 0
    assert [name for name, line in heard.lines if line == "stopped"] == ["a", "b"]


async def test_a_second_signal_kills() -> None:
    """Who presses Ctrl-C twice does not wait for the grace time."""
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; signal.pause()"
    children = Children([script("a", stubborn, grace=60.0)], Heard())
    said: list[str] = []

    async def begin() -> bool:
        await children.ready()
        os.kill(os.getpid(), signal.SIGINT)
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
        return True

    began = time.monotonic()
    assert await supervise(children, begin, said.append) == 0
    assert time.monotonic() - began < PATIENCE
    assert said == ["killing what still runs"]


PARENT = """
import asyncio, sys
from tidings.processes import Children, Program

async def main():
    children = Children([Program(code, ("-c", code)) for code in sys.argv[1:]], lambda *_: None)
    children.start()
    await children.ready()
    print(*[child.pid for child in children], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def orphan(*codes: str) -> list[int]:
    """The pids of children whose parent has been killed."""
    with subprocess.Popen([sys.executable, "-c", PARENT, *codes], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            pids = [int(pid) for pid in (await asyncio.to_thread(parent.stdout.readline)).split()]
            assert len(pids) == len(codes)
            assert not any(map(gone, pids))
        finally:
            parent.kill()
    return pids


async def test_no_child_outlives_a_parent_that_was_killed() -> None:
    """kill -9 of the one in the terminal: the lifeline ends, and the children stop themselves, each in its way."""
    pids = await orphan(f"{READY}; import time; time.sleep(60)", WAIT.format(then=READY))
    await eventually(lambda: all(map(gone, pids)), seconds=5.0)


async def test_an_orphan_that_ignores_the_request_ends_itself() -> None:
    """After its grace it is killed by its own hand."""
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    hasty = READY.replace("lifeline.hold()", "lifeline._ORPHAN_GRACE = 0.3; lifeline.hold()")
    (pid,) = await orphan(f"{ignore}; {hasty}; signal.pause()")
    await eventually(lambda: gone(pid), seconds=5.0)


def test_without_a_parent_the_lifeline_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command typed by a person holds none, and telling is allowed."""
    monkeypatch.setenv(lifeline.NAME, "not a number")
    lifeline.hold()
    lifeline.tell_ready()
    assert lifeline.NAME not in os.environ


def test_exit_codes_in_words() -> None:
    """Signals have names, also those that Python does not know."""
    assert describe(3) == "ended with exit code 3"
    assert describe(-9) == "was killed by SIGKILL"
    assert describe(-63) == "was killed by signal 63"
