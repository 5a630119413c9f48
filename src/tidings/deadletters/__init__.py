"""Dead letters: which are meant, what they have in common, moving many of them, and a file to keep them in."""

from __future__ import annotations

from .acts import Act, acts, note
from .archive import Restored, restore, to_letter, to_line
from .fingerprint import fingerprint
from .kinds import Kind, kinds
from .moving import move
from .selection import Selection, count, pages

__all__ = [
    "Act",
    "Kind",
    "Restored",
    "Selection",
    "acts",
    "count",
    "fingerprint",
    "kinds",
    "move",
    "note",
    "pages",
    "restore",
    "to_letter",
    "to_line",
]
