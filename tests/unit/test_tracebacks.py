"""The text that is kept of a failure."""

from __future__ import annotations

import logging
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from tidings.cli.web import _short
from tidings.errors import EngineUnavailable
from tidings.logs import JsonFormatter, TextFormatter
from tidings.work import handling
from tidings.work.tracebacks import place_of, text_of, without_libraries


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


class Library:
    """A module that lies among the installed packages."""

    def __init__(self, directory: Path, name: str, source: str) -> None:
        self.file = directory / "site-packages" / f"{name}.py"
        self.names: dict[str, Any] = {"__name__": name}
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(source)
        exec(compile(source, self.file, "exec"), self.names)


def test_the_place_is_in_the_application(tmp_path: Path) -> None:
    """Of a failure deep in a library, the lines of the application that led there; none of ours, none of theirs."""
    library = Library(tmp_path, "library", "def call(): return json.loads('{')\nimport json\n")

    def handler() -> None:
        library.names["call"]()

    with pytest.raises(ValueError, match="Expecting") as raised:
        handler()
    place = place_of(raised.value, "elsewhere")
    assert "in handler" in place
    assert "site-packages" not in place
    assert "json" not in place


def test_an_installed_application_is_the_application(tmp_path: Path) -> None:
    """What belongs to the handler's package counts as its own wherever it lies."""
    library = Library(tmp_path, "library", "def call(): raise LookupError")
    app = Library(tmp_path, "shop.handlers", "def save(library): library.names['call']()")
    with pytest.raises(LookupError) as raised:
        app.names["save"](library)
    place = place_of(raised.value, "shop")
    assert "in save" in place
    assert "in call" not in place


def test_the_place_is_found_in_what_led_to_it() -> None:
    """An error that was made elsewhere happened where its cause did; a deep one is told with its begin and its end."""
    outer = RuntimeError("not raised")
    with pytest.raises(ZeroDivisionError) as raised:
        _deep(100)
    outer.__cause__ = raised.value
    place = place_of(outer, "")
    assert "in test_the_place_is_found_in_what_led_to_it\n" in place
    assert len(place.splitlines()) < 25
    assert place_of(SyntaxError("never raised"), "") == ""


def test_a_text_without_the_lines_of_libraries(tmp_path: Path) -> None:
    """What is left of a traceback's text are its errors and the lines of the application, if it has any."""
    library = Library(
        tmp_path, "library", "def call(f):\n    try: f()\n    except KeyError as e: raise LookupError('x') from e"
    )

    def own() -> None:
        raise KeyError("own")

    with pytest.raises(LookupError) as raised:
        library.names["call"](own)
    text = without_libraries("".join(traceback.format_exception(raised.value)))
    assert "site-packages" not in text
    assert text.count("in own") == text.count("in test_a_text_without_the_lines_of_libraries") == 1
    assert "KeyError: 'own'\n\nThe above exception was the direct cause" in text
    assert text.endswith("LookupError: x\n")
    raised.value.__traceback__ = raised.value.__traceback__ and raised.value.__traceback__.tb_next
    raised.value.__cause__ = None
    theirs = "".join(traceback.format_exception(raised.value))
    assert without_libraries(theirs) == theirs


def test_an_error_of_ours_at_the_start_of_a_web_application_is_its_sentence() -> None:
    """What uvicorn logs of an application that cannot start: a sentence where it is one of ours, and else the lines of
    the application; other lines are left as they are."""

    def logged(text: str) -> str:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, text, (), None)
        assert _short(record)
        return record.getMessage()

    def start() -> None:
        raise EngineUnavailable("nobody answers: is it running?")

    with pytest.raises(EngineUnavailable) as raised:
        start()
    assert logged("".join(traceback.format_exception(raised.value))) == (
        "EngineUnavailable: nobody answers: is it running?"
    )
    own = logged("".join(traceback.format_exception(_raised("alone"))))
    assert own.startswith("Traceback (most recent call last):\n")
    assert own.endswith("ZeroDivisionError: division by zero\n")
    assert logged("Waiting for application startup.") == "Waiting for application startup."


def test_a_log_prints_the_place_and_keeps_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """Any formatter prints the place that the record has; programs that collect errors find all of it."""
    error = _raised("cause")
    handling.log.error("failed", exc_info=error, extra={"place": "  in handlers.py"})
    handling.log.error("failed", exc_info=error)
    short, whole = caplog.records
    assert logging.Formatter("%(message)s").format(short) == "failed\n  in handlers.py"
    assert JsonFormatter().format(short).endswith('"traceback": "  in handlers.py"}')
    assert TextFormatter().format(short).endswith("failed\n  in handlers.py")
    assert short.exc_info is not None
    assert short.exc_info[1] is error
    assert "ZeroDivisionError" in logging.Formatter().format(whole)
