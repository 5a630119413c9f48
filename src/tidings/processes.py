"""Several programs in one terminal: started, restarted when they end, stopped in order, none left behind.

A program is a command line of this Python. Its child process holds one end of a socket, the *lifeline*: on it the
child says once that it is ready, and on it the child notices the death of this process, however it died, and then
stops by itself (`tidings.lifeline`). Children are sessions of their own, so that a Ctrl-C reaches this process
alone, which then stops them stage by stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import msgspec

from . import lifeline

UNUSABLE: Final = 2
"""Exit code of a program that cannot work as it is called: it is not started again unless it has worked before."""

FIRST_PAUSE: Final = 0.2  # seconds before the first restart, doubled with each
MOST_PAUSE: Final = 10.0
CALM: Final = 1.0
"""Seconds of life after which a restart counts as the first again, for a program that had told that it is ready."""
_LONGEST_LINE: Final = 64 * 1024
_LAST_WORDS: Final = 1.0  # seconds in which the output of an ended child is still read

Say = Callable[[str, str], None]
"""Called with a program's name and one line, from the child or about it."""


class Program(msgspec.Struct, frozen=True):
    """What to run, and how to stop it."""

    name: str
    arguments: tuple[str, ...]
    """What follows the Python interpreter: `("-m", "tidings", "run", …)`."""
    environment: dict[str, str] = {}
    """Added to this process's own."""
    descriptors: tuple[int, ...] = ()
    """Open file descriptors it inherits."""
    stage: int = 0
    """Lower ones are stopped first, and have ended before the next are asked to."""
    grace: float = 40.0
    """Seconds it may take to stop; then it is killed."""


class Child:
    """One program, kept running."""

    def __init__(self, program: Program, say: Say) -> None:
        self.program = program
        self.ready = asyncio.Event()
        """Set once it has been ready for the first time."""
        self._was_ready = False
        self.restarts = 0
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def keep(self) -> int:
        """Run it, again and again, until `stop` (returns 0) or until it turns out to be unusable (its exit code)."""
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            code = await self._live()
            if self._stopping.is_set():
                # One that is asked to stop before it has learned how to is ended by the request itself.
                self.tell("stopped" if code in (0, -signal.SIGTERM) else f"stopped, {describe(code)}")
                return 0
            if code == UNUSABLE and not self.ready.is_set():
                self.tell("it cannot work like this: see above")
                return code
            if self._was_ready and time.monotonic() - began >= CALM:
                pause = FIRST_PAUSE
            self.tell(f"{describe(code)}; starting it again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return 0
            pause = min(2 * pause, MOST_PAUSE)
            self.restarts += 1

    def stop(self) -> None:
        """Ask it to end; it is not started again."""
        self._stopping.set()
        self._terminate()

    def kill(self) -> None:
        """End it, and what it has started in its session, at once."""
        self._stopping.set()
        self._kill()

    def _terminate(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _live(self) -> int:
        """One life: start, pass on what it says, wait for its end. Cancelled, it kills."""
        ours, theirs = socket.socketpair()
        self._was_ready = False
        with ours:
            try:
                process = self._process = await self._spawn(theirs.fileno())
            except OSError as error:
                self.tell(f"cannot be started: {error}")
                return 1
            finally:
                theirs.close()
            if self._stopping.is_set():
                self._terminate()
            told = asyncio.create_task(self._hear_ready(ours))
            said = asyncio.create_task(self._pass_on(process.stdout))
            try:
                code = await process.wait()
                await asyncio.wait({told, said}, timeout=_LAST_WORDS)
                return code
            finally:
                self._kill()  # only if we were cancelled is there anything to kill
                for task in (told, said):
                    task.cancel()
                await asyncio.gather(told, said, return_exceptions=True)

    async def _spawn(self, theirs: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *self.program.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.program.environment, lifeline.NAME: str(theirs)},
            pass_fds=(theirs, *self.program.descriptors),
            start_new_session=True,
        )

    async def _hear_ready(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        with contextlib.suppress(OSError):
            if (await asyncio.get_running_loop().sock_recv(ours, len(lifeline.READY))) == lifeline.READY:
                self._was_ready = True
                self.ready.set()

    async def _pass_on(self, output: asyncio.StreamReader | None) -> None:
        rest = b""
        while output and (piece := await output.read(64 * 1024)):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self.tell(line.rstrip(b"\r").decode("utf-8", "replace"))
        if rest:
            self.tell(rest.decode("utf-8", "replace"))

    def tell(self, line: str) -> None:
        """Say one line in the program's name."""
        self._say(self.program.name, line)


class Children:
    """All programs of one terminal."""

    def __init__(self, programs: Sequence[Program], say: Say) -> None:
        self._children = [Child(program, say) for program in programs]
        self._keeping: dict[asyncio.Task[int], Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children)

    def start(self) -> None:
        """Start all at once; returns before they run."""
        self._keeping = {
            asyncio.create_task(child.keep(), name=f"keep {child.program.name}"): child for child in self._children
        }

    async def ready(self) -> None:
        """Return when each has been ready once."""
        await asyncio.gather(*(child.ready.wait() for child in self._children))

    async def unusable(self) -> int:
        """Wait for a program that can never start; its exit code."""
        running = set(self._keeping)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for code in (task.result() for task in done):
                if code:
                    return code
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # they were stopped

    async def stop(self) -> None:
        """Stop stage by stage; what takes longer than its grace is killed. Cancelled, it kills them all."""
        try:
            for stage in sorted({child.program.stage for child in self._children}):
                await self._stop_stage({t: c for t, c in self._keeping.items() if c.program.stage == stage})
        finally:
            self.kill()
            await asyncio.gather(*self._keeping, return_exceptions=True)

    async def _stop_stage(self, keeping: dict[asyncio.Task[int], Child]) -> None:
        for child in keeping.values():
            child.stop()
        if keeping:
            await asyncio.wait(keeping, timeout=max(child.program.grace for child in keeping.values()))
        for task, child in keeping.items():
            if not task.done():
                child.tell(f"still there after {child.program.grace:g} s: killed")
                child.kill()
                await asyncio.wait({task})

    def kill(self) -> None:
        """End all at once; nothing is started again."""
        for child in self._children:
            child.kill()


async def supervise(
    children: Children,
    begin: Callable[[], Awaitable[bool]],
    say: Callable[[str], None],
    *,
    first: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run the programs until SIGINT, SIGTERM or SIGHUP; a second one kills instead of waiting.

    `first` ends before any of them is started. `begin` runs beside them, waits for whatever it wants and says whether
    to go on. What they raise ends everything and is raised here. Returns 0, or the exit code of a program that can
    never start.
    """
    asked, started = asyncio.Event(), asyncio.Event()

    def ask() -> None:
        if asked.is_set():
            say("killing what still runs")
            children.kill()
        asked.set()

    async def until_asked() -> int:
        await asked.wait()
        return 0

    async def until_enough() -> int:
        if first is not None:
            await first()
        children.start()
        started.set()
        return 0 if not await begin() else await until_asked()

    async def until_unusable() -> int:
        await started.wait()
        return await children.unusable()

    with _on_stop_signals(ask):
        ends = [asyncio.create_task(end()) for end in (until_asked, until_enough, until_unusable)]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if asked.is_set() and not started.is_set():
                say("stopped")
            return max(end.result() for end in done)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            await children.stop()


@contextlib.contextmanager
def _on_stop_signals(call: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def describe(code: int) -> str:
    """An exit code in words: `ended with exit code 1`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
