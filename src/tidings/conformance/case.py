"""A case: one promise, and the code that holds an engine to it."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

T = TypeVar("T")

Layer = Literal["seam", "bus"]

PATIENCE: Final = 90.0
"""Seconds of real time that one case may take altogether, and so the longest that anything in it is waited for."""

_deadline: ContextVar[float] = ContextVar("tidings_conformance_deadline")
_registry: dict[tuple[Layer, str], Case] = {}


@dataclass(frozen=True)
class Case:
    """One promise. `name` is unique within its layer and `str(case)`, so it makes a readable test id."""

    name: str
    layer: Layer
    theme: str
    promise: str
    """What is promised, from the docstring."""
    function: Callable[[Any], Awaitable[None]]
    wired: bool = False
    """Whether it takes a `WiredWorld`: one with a server and a wire that can fail."""

    def __str__(self) -> str:
        return self.name

    async def run(self, world: Any) -> None:
        """Hold the engine of `world` to the promise; raises `AssertionError`, or `TimeoutError` after `PATIENCE`."""
        token = _deadline.set(time.monotonic() + PATIENCE - 1)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.function(world)
        finally:
            _deadline.reset(token)


def case(
    layer: Layer, *, wired: bool = False
) -> Callable[[Callable[[Any], Awaitable[None]]], Callable[[Any], Awaitable[None]]]:
    """Register the decorated function, which takes a world, as a case. Its docstring is the promise."""

    def register(function: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        name = function.__name__
        promise = inspect.getdoc(function)
        if not promise:
            raise TypeError(f"case {name} promises nothing: it needs a docstring")
        if (layer, name) in _registry:
            raise TypeError(f"there are two {layer} cases named {name}")
        _registry[layer, name] = Case(name, layer, function.__module__.rpartition(".")[2], promise, function, wired)
        return function

    return register


def registered(layer: Layer) -> list[Case]:
    """The cases of a layer whose modules are imported, in the order of the files."""
    return [case for case in _registry.values() if case.layer == layer]


async def eventually(condition: Callable[[], Awaitable[T]], promise: str) -> T:
    """The first true result of `condition`; fails with `promise` when the case's deadline comes first."""
    pause = 0.0
    while not (result := await condition()):
        if time.monotonic() >= _deadline.get():
            raise AssertionError(f"{promise}: still {result!r} at the deadline of the case")
        await asyncio.sleep(pause)
        pause = min(0.1, pause + 0.005)
    return result
