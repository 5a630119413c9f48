"""Log lines that name the message."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

import tidings
from tidings.clock import ManualClock
from tidings.logs import Fields, JsonFormatter, Lasting, TextFormatter, configure, message_context, printable
from tidings.testing import TestBus


class Made(tidings.Event, subject="events.made"):
    n: int


class Lines(logging.Handler):
    """Keeps formatted lines."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.addFilter(Fields())
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def line(formatter: logging.Formatter, text: str, **fields: object) -> str:
    handler, logger = Lines(formatter), logging.Logger("app")
    logger.addHandler(handler)
    with message_context(**fields):
        logger.info(text)
    return handler.lines[0]


@pytest.fixture
def json_lines() -> Iterator[Lines]:
    """Everything logged below `app` and `tidings`, as JSON."""
    handler = Lines(JsonFormatter())
    loggers = [logging.getLogger("app"), logging.getLogger("tidings")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel("INFO")
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel("NOTSET")


async def test_a_handlers_own_line_names_the_message(json_lines: Lines) -> None:
    """A line of the application's own logger carries id, subject, group and attempt; so does the worker's."""
    bus = tidings.Bus("todo")

    @bus.on(Made, group="save", retry=tidings.RetryPolicy(first=0, most=0))
    async def save(made: Made, message: tidings.Message) -> None:
        logging.getLogger("app.orders").info("saving")
        if message.attempt == 1:
            raise ValueError("not yet")

    async with TestBus(bus) as t:
        receipt = await bus.publish(Made(1))
        await t.settle()
    records = [json.loads(line) for line in json_lines.lines]
    own = [record for record in records if record["logger"] == "app.orders"]
    assert [(r["message_id"], r["subject"], r["group"], r["attempt"]) for r in own] == [
        (receipt.id, "events.made", "save", 1),
        (receipt.id, "events.made", "save", 2),
    ]
    failed = next(record for record in records if "attempt 1 of" in record["message"])
    assert (failed["level"], failed["message_id"]) == ("warning", receipt.id)


async def test_a_thread_handlers_line_names_the_message_too(json_lines: Lines) -> None:
    """The fields follow a plain `def` handler into its thread."""
    bus = tidings.Bus("todo")

    @bus.on(Made, group="save")
    def save(made: Made) -> None:
        logging.getLogger("app.orders").info("saving")

    async with TestBus(bus) as t:
        receipt = await bus.publish(Made(1))
        await t.settle()
    (record,) = (json.loads(line) for line in json_lines.lines if "saving" in line)
    assert record["message_id"] == receipt.id


def test_text_lines_show_the_fields() -> None:
    """The short form for a terminal ends with the fields in brackets."""
    shown = line(TextFormatter(), "hello", message_id="7", subject="events.x")
    assert shown.endswith("info    hello [id=7 subject=events.x]")
    assert line(TextFormatter(), "hello").endswith("hello")


def test_an_id_is_shown_once() -> None:
    """A line that names the id itself has it in its text only; JSON has it as a field in any case."""
    id = "01a20620-dee0-76c7-8c8b-ffed0fc9b428"
    said = f"saving, event ID: {id}"
    assert line(TextFormatter(), said, message_id=id, group="save").endswith(f"{said} [group=save]")
    assert line(TextFormatter(), said, message_id=id).endswith(said)
    assert json.loads(line(JsonFormatter(), said, message_id=id))["message_id"] == id
    assert line(TextFormatter(), "attempt 7", message_id="7").endswith("attempt 7 [id=7]")


async def test_a_trouble_that_lasts_is_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """Once when it begins, once a minute, once when it is over; the next one begins anew. No line is about the message
    with which it was found out."""
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(Fields())
    clock = ManualClock()
    trouble = Lasting(logging.getLogger("tidings.worker"), clock)
    trouble.over("never begun")
    with message_context(message_id="x"):
        for _ in range(130):
            trouble.met("%d waiting", 3)
            await clock.advance(1)
        trouble.over("back")
        trouble.over("back")
        trouble.met("away")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "3 waiting"),
        ("WARNING", "3 waiting (for 60 s now)"),
        ("WARNING", "3 waiting (for 120 s now)"),
        ("INFO", "back after 130 s"),
        ("WARNING", "away"),
    ]
    assert [vars(record)["tidings"] for record in caplog.records] == [{}] * 5


def test_a_message_cannot_write_into_the_terminal() -> None:
    """Escape sequences and forged lines in ids and texts arrive harmless."""
    shown = line(TextFormatter(), "evil \x1b[31m \x9b \u202e", message_id="\x1b]0;title\x07\nfake 12:00 info forged")
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\n" not in shown
    assert "\\x1b" in shown


def test_a_traceback_cannot_write_into_the_terminal() -> None:
    """The text of an exception is somebody else's, too."""
    handler, logger = Lines(TextFormatter()), logging.Logger("app")
    logger.addHandler(handler)
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception("failed")
    assert "\x1b" not in handler.lines[0]
    assert "ValueError: \\x1b[2J" in handler.lines[0]


def test_json_lines_are_one_object_each() -> None:
    """Line breaks and quotes in a text never break the line; a traceback is a field."""
    handler, logger = Lines(JsonFormatter()), logging.Logger("app")
    logger.addHandler(handler)
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception('two\nlines "quoted"')
    assert "\n" not in handler.lines[0]
    record = json.loads(handler.lines[0])
    assert record["message"] == 'two\nlines "quoted"'
    assert record["traceback"].startswith("Traceback")
    assert record["time"].endswith("+00:00")


def test_contexts_nest_and_end() -> None:
    """The inner fields are added to the outer ones and gone afterwards."""
    formatter = JsonFormatter()
    with message_context(group="save"):
        assert json.loads(line(formatter, "x", attempt=2))["group"] == "save"
    assert "group" not in json.loads(line(formatter, "x"))


def test_printable_keeps_lines_and_words() -> None:
    """Letters of every script, line breaks and tabs stay."""
    assert printable("grüße\n\tдом 🙂") == "grüße\n\tдом 🙂"
    assert printable("a\x00b\rc") == "a\\x00b\\x0dc"


@pytest.mark.parametrize("format", ["text", "json"])
def test_configure_logs_to_stderr(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout is for data: the command line's log goes to stderr in the form asked for."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure(format, "warning")
        logging.getLogger("x").warning("here")
        logging.getLogger("x").info("not here")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    out, err = capsys.readouterr()
    assert out == ""
    assert "here" in err
    assert "not here" not in err
    assert err.startswith("{") == (format == "json")
