"""What tells one error from another, over thousands of messages that died of it.

The same error says something else for each message: ids, numbers and quoted values change, the handler, the type of
the exception and the place in the code that raised it do not.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from ..engine import Failure

_MOST: Final = 500
"""Characters of a message that count."""
_QUOTED = re.compile(r"""(?<!\w)'(?:[^'\\\n]|\\.)*'(?!\w)|"(?:[^"\\\n]|\\.)*"|`[^`\n]*`""")
_UUID = re.compile(r"\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b", re.IGNORECASE)
_HEX = re.compile(r"\b0x[0-9a-f]+\b|\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![A-Za-z_\d])[-+]?\d+(?:[.,:]\d+)*")

_FRAME = re.compile(r'^[\s|]*File "([^"\n]+)", line \d+, in (\S+)', re.MULTILINE)
_BEGIN = "Traceback (most recent call last):"
_SEPARATOR = re.compile(r"[/\\]")
_NOT_OWN = re.compile(
    r"[/\\](?:site-packages|dist-packages|python3\.\d+)[/\\]|^<|[/\\]tidings[/\\](?:\w+|sql[/\\]\w+)\.py$"
)


def fingerprint(failure: Failure) -> str:
    """Ten characters that are the same for the same handler, exception type, place in the code and kind of message."""
    what = (failure.handler, failure.error, place(failure.traceback), normalised(failure.message))
    return hashlib.sha256("\n".join(what).encode("utf-8", "surrogatepass")).hexdigest()[:10]


def normalised(message: str) -> str:
    """The text without what changes from message to message."""
    text = message[:_MOST]
    for pattern, instead in ((_QUOTED, "'…'"), (_UUID, "<id>"), (_HEX, "<id>"), (_NUMBER, "0")):
        text = pattern.sub(instead, text)
    return " ".join(text.split())


def place(traceback: str) -> str:
    """File and function of the innermost frame that belongs to the application; of any frame if none does.

    Not the line: it moves whenever somebody edits the file above it.
    """
    frames = _FRAME.findall(traceback.rpartition(_BEGIN)[2])
    own = [frame for frame in frames if not _NOT_OWN.search(frame[0])] or frames
    if not own:
        return ""
    file, function = own[-1]
    return f"{'/'.join(_SEPARATOR.split(file)[-2:])}:{function}"
