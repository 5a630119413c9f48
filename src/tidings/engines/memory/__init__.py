"""The memory engine: a real engine for tests and one-process programs; nothing outlives the process.

`MemoryStore` plays the server, each `MemoryEngine(store)` is one connection to it. `abandon()` is a crash.
"""

from .engine import MemoryEngine
from .store import MemoryStore

__all__ = ["MemoryEngine", "MemoryStore"]
