"""The `tidings` command.

root       the commands by name, imported only when used; errors become a sentence and an exit code
options    what every command takes: --url, --namespace, …
session    a connection to the engine for one command
output     tables, JSON, and text of strangers made harmless
"""

from __future__ import annotations

import sys
from io import TextIOWrapper


def main() -> None:
    """Run the command line of this process; does not return."""
    from .. import lifeline

    lifeline.hold()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character still gets the line
    try:
        from .root import commands

        commands(prog_name="tidings")
    except KeyboardInterrupt:
        sys.exit(130)
