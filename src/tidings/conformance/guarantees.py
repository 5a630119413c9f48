"""The page that says what is promised, written from the cases that prove it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from .case import Layer, registered
from .promises import PROMISES

_HEAD = """\
# What is promised, and what proves it

This page is written by `python -m tidings.conformance` from the docstrings of the conformance cases; what it says is
what is tested, by the same code on every engine: in memory, on the embedded broker, on a NATS cluster of
three, on Valkey and on Redis. `./test conformance` runs them. Cases marked *wire* break the server, or the wire to it
(`kill -9`, freezing, cuts, lost answers, and the like): they run where there is one.
"""
_LAYERS: dict[Layer, str] = {"seam": "What every engine keeps", "bus": "What every application can rely on"}


def guarantees() -> str:
    """The page, as Markdown."""
    return "\n".join([_HEAD, *_table(), *(line for layer in _LAYERS for line in _cases(layer))]) + "\n"


def _table() -> Iterator[str]:
    yield "| | promise | proved by |\n|---|---|---|"
    for number, promise in enumerate(PROMISES, 1):
        proof = ", ".join(f"[`{name}`](#{name})" for name in promise.cases)
        yield f"| {number} | **{promise.title}.** {promise.text} | {proof} |"


def _cases(layer: Layer) -> Iterator[str]:
    yield f"\n## {_LAYERS[layer]}"
    for theme, members in groupby(sorted(registered(layer), key=lambda case: case.theme), key=lambda case: case.theme):
        yield f"\n### {theme.capitalize()}\n"
        for each in members:
            wire = " *(wire)*" if each.wired else ""
            yield f'- <a id="{each.name}"></a>`{each.name}`{wire}: {" ".join(each.promise.split())}'
