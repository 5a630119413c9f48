"""The text that is kept of a failure."""

from __future__ import annotations

import re
import traceback

import pytest

from tidings.work.tracebacks import text_of


def _raised(kind: str) -> Exception:
    try:
        if kind == "alone":
            _deep(5)
        elif kind == "cause":
            try:
                _deep(0)
            except ZeroDivisionError as error:
                raise KeyError("caused") from error
        elif kind == "context":
            try:
                _deep(0)
            except ZeroDivisionError:
                int("x")
        elif kind == "hidden":
            try:
                _deep(0)
            except ZeroDivisionError:
                raise KeyError("shown alone") from None
        elif kind == "group":
            raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
        elif kind == "circle":
            one, other = ValueError("one"), ValueError("other")
            one.__cause__, other.__cause__ = other, one
            raise one
    except Exception as error:
        return error
    return SyntaxError("never raised")


def _deep(depth: int) -> float:
    return _deep(depth - 1) if depth else 1 / 0


@pytest.mark.parametrize("kind", ["alone", "cause", "context", "hidden", "group", "circle", "never raised"])
def test_it_is_what_python_prints_without_its_marks(kind: str) -> None:
    """Chains, hidden contexts, groups, circles and errors that were never raised: all lines that Python prints."""
    error = _raised(kind)
    expected = "".join(traceback.format_exception(error))
    marks = re.compile(r"^[ |]*[~^]+\n", re.MULTILINE)
    assert marks.sub("", text_of(error)) == marks.sub("", expected)


def test_an_error_without_a_text_still_has_a_traceback() -> None:
    """An exception whose own `__str__` fails does not keep its failure from being noted."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(Unprintable) as raised:
        raise Unprintable
    assert "test_tracebacks.py" in text_of(raised.value)
