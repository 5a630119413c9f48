"""`dlq`: messages that need a person."""

from __future__ import annotations

import click

from .. import options
from .act import drop, redrive
from .change import edit
from .files import export, import_
from .look import log, ls, show, unclaimed


@click.group()
@options.common
def dlq() -> None:
    """Look at dead letters, mend them, put them back, drop them.

    A dead letter is a message that a group could not handle: its bytes, headers, error and traceback are kept until a
    person acts. Its key is group/position.

    \b
    handler_error  every try ended with an exception   undecodable   the body is no JSON
    timeout        the last try took too long          invalid       JSON of another shape than the event's
    crash_loop     it ended its process each time      unknown_type  a version that no worker knew
    rejected       the handler said Reject             expired       its time was over before a handler ran
    """


for command in (ls, show, redrive, edit, drop, export, import_, unclaimed, log):
    dlq.add_command(command)
