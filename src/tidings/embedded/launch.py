"""Runs the supervisor without the framework: `python -I -S launch.py DIRECTORY SETTINGS BINARY VERSION`.

The supervisor lives as long as the broker does and needs a few small modules of this folder. Entering the packages
without running their `__init__` keeps it at that: a quick start, a small process, and nothing that an application
imports (or a broken installation) can take the broker down.
"""

import sys
import types
from pathlib import Path


def _bare(name: str, folder: Path) -> None:
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    _bare("tidings", here.parent)
    _bare("tidings.embedded", here)
    from tidings.embedded.supervisor import main

    sys.exit(main(sys.argv[1:]))
