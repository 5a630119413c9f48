"""A command line whose engine is a store in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

from click.testing import CliRunner, Result

from tidings.cli.root import commands
from tidings.clock import Clock, ManualClock
from tidings.engines.memory import MemoryEngine, MemoryStore

T = TypeVar("T")


class MemoryShell:
    """A person at a terminal that is none. `command` is what every line begins with."""

    command: ClassVar[tuple[str, ...]] = ()

    def __init__(self, clock: Clock | None = None) -> None:
        self.store = MemoryStore(clock or ManualClock())

    def __call__(self, *words: str, input: str | bytes | None = None) -> Result:
        return CliRunner().invoke(commands, ["--url", "memory:", *self.command, *words], obj=self.store, input=input)

    def out(self, *words: str, input: str | bytes | None = None) -> str:
        """What a command that goes well prints."""
        result = self(*words, input=input)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.out(*words, "--json"))

    def play(self, scene: Callable[[MemoryEngine], Awaitable[T]]) -> T:
        """Let somebody else act on the same store."""

        async def act() -> T:
            engine = MemoryEngine(self.store)
            await engine.open()
            try:
                return await scene(engine)
            finally:
                await engine.close()

        return asyncio.run(act())
