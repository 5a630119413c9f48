"""`python -m tidings`: the command line, also where the `tidings` script is not on PATH."""

from __future__ import annotations

from tidings.cli import main

if __name__ == "__main__":
    main()
