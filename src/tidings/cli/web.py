"""`web`: serves an ASGI application on a socket it inherits. What `up --web` and `demo` run; not for people."""

from __future__ import annotations

import logging
import resource
import signal
import socket
import sys
from typing import Final

import click

from .. import lifeline
from ..errors import ConfigError, MissingExtra, Unsuitable
from ..processes import UNUSABLE
from ..work.tracebacks import without_libraries
from . import options

_HOPELESS: Final = tuple(f"{kind.__module__}.{kind.__name__}:" for kind in (ConfigError, MissingExtra, Unsuitable))
_GRACE: Final = 3  # seconds for open connections; browsers that are pushed to never close theirs

_CEREMONY: Final = (
    "Started server process",
    "Finished server process",
    "Waiting for application",
    "Application shutdown",
)
"""What uvicorn says besides that it has started and that it stops."""


@click.command(hidden=True)
@click.argument("app", metavar="MODULE:APP")
@click.option("--fd", type=int, required=True, help="An inherited listening socket.")
@options.common
def web(app: str, fd: int) -> None:
    """Serve an ASGI application on an inherited socket."""
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("The web server uvicorn", "web") from error
    from .find import load_object

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                lifeline.tell_ready()

    options.configure_logs("info")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one for each browser that is pushed to
    config = uvicorn.Config(
        load_object(app, usual="app"), log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE
    )
    # uvicorn handles these while it serves and raises them again when it is done: asked to stop is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = Server(config)
    said = logging.getLogger("uvicorn.error")
    # Browsers that are pushed to are cut off when we stop: nothing that a person needs to read as an error.
    said.addFilter(lambda record: not (server.should_exit and "without completing response" in record.getMessage()))
    hopeless = _Hopeless()
    said.addFilter(hopeless)
    if not said.isEnabledFor(logging.DEBUG):
        said.addFilter(_short)
        said.addFilter(lambda record: not record.getMessage().startswith(_CEREMONY))
    try:
        server.run(sockets=[socket.socket(fileno=fd)])
    except SystemExit:
        if not hopeless.met:
            raise
    if not server.started:
        sys.exit(UNUSABLE if hopeless.met else 1)


class _Hopeless(logging.Filter):
    """Notices why an application does not start, which ASGI tells as the text of a traceback only, where the next try
    would end the same way."""

    met = False

    def filter(self, record: logging.LogRecord) -> bool:
        self.met |= str(record.msg).strip().rpartition("\n")[2].startswith(_HOPELESS)
        return True


def _short(record: logging.LogRecord) -> bool:
    """An application that does not start, as its database is away, says so at each try: a screenful of libraries."""
    if isinstance(record.msg, str) and record.msg.startswith("Traceback ") and not record.args:
        record.msg = without_libraries(record.msg)
        last = record.msg.strip().rpartition("\n")[2]
        if last.startswith("tidings.errors."):  # a sentence for people, wherever it comes from
            record.msg = last.removeprefix("tidings.errors.")
    return True
