"""The tree of errors is the one that its docstring draws, and each error says what to do."""

from __future__ import annotations

import inspect
import re

import pytest

from tidings import errors
from tidings.errors import (
    ConfigError,
    DecodeError,
    EngineError,
    InvalidMessage,
    MissingExtra,
    NoResponder,
    PublishInTransaction,
    RemoteError,
    RequestTimeout,
    TidingsError,
    TooLarge,
    Unconfirmed,
)
from tidings.retry import Outcome, Reject, RetryLater


def drawn_tree() -> dict[str, str]:
    """Name of each error in the docstring's drawing, with the name it stands under."""
    found: dict[str, str] = {}
    above = ["TidingsError"]
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        if match := re.match(r"[│ ]*([├└])── (\w+)", line):
            depth = match.start(1) // 4
            above = [*above[:depth], match[2]]
            found[match[2]] = above[depth - 1]
    return found


def real_tree() -> dict[str, str]:
    return {
        name: cls.__bases__[0].__name__
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, TidingsError) and cls is not TidingsError
    }


def test_the_docstring_draws_the_real_tree() -> None:
    """Every error stands in the drawing, below its real base class."""
    assert drawn_tree() == real_tree()


def test_outcomes_are_not_swallowed_by_except_tidings_error() -> None:
    """A handler that catches `TidingsError` does not catch the outcomes it raises itself."""
    assert not issubclass(Outcome, TidingsError)
    assert issubclass(Reject, Outcome)
    assert issubclass(RetryLater, Outcome)


def test_refused_messages_are_value_errors_too() -> None:
    """Code that knows nothing of Tidings can treat a refused message as a bad value."""
    assert issubclass(InvalidMessage, ValueError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MissingExtra("Push", "web"), ["Push", "pip install 'tidings[web]'"]),
        (TooLarge(2_000_000, 1_048_576), ["2,000,000", "1,048,576", "reference"]),
        (PublishInTransaction(), ["Return the event", "bus.outbox(session)", "now=True"]),
        (NoResponder("todo.count"), ["'todo.count'", "@bus.reply"]),
        (RequestTimeout("todo.count", 1.5), ["'todo.count'", "1.5 s"]),
        (RemoteError("KeyError", "'x'"), ["KeyError: 'x'"]),
    ],
)
def test_the_text_says_what_to_do(error: TidingsError, words: list[str]) -> None:
    """Each error names what it is about and the way out."""
    assert all(word in str(error) for word in words)


def test_errors_keep_what_they_are_about() -> None:
    """What the text says can also be read without parsing it."""
    assert (TooLarge(5, 3).size, TooLarge(5, 3).limit) == (5, 3)
    assert MissingExtra("Push", "web").extra == "web"
    assert DecodeError("invalid", "x").reason == "invalid"
    assert (RemoteError("T", "m").type, RemoteError("T", "m").message) == ("T", "m")


def test_unconfirmed_gives_the_receipt_to_publish_again_with() -> None:
    """`receipt` is the first of `receipts`, or None where nothing is known."""
    assert Unconfirmed("x", ("first", "second")).receipt == "first"
    assert Unconfirmed("x").receipt is None
    assert issubclass(Unconfirmed, EngineError)
    assert issubclass(MissingExtra, ConfigError)
