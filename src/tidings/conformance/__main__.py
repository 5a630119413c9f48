"""`python -m tidings.conformance > docs/guarantees.md`."""

from __future__ import annotations

from .guarantees import guarantees

if __name__ == "__main__":
    print(guarantees(), end="")
