"""What `./demo`, `./tidings` and `./test` share: find this clone's environment, or have it made, and become its Python.

Standard library only, and in the words of Python 3.6, since it runs before anything is installed: an old python3 looks
for a newer one instead of dying of a SyntaxError. Once the environment is there a start is a hash, a look at one file
and an `exec`; what only a first start needs is in `install.py`.
"""

import hashlib
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
CACHE = os.path.join(ROOT, ".cache")
MINIMUM = (3, 11)


class Environment:
    """A virtual environment below `.cache`.

    It is named after everything that decides its contents and whether it works (scripts in it name their interpreter by
    absolute path), so that a change of any of it asks for another one instead of repairing this one. It counts as
    existing once its stamp is written, the very last step of making it.
    """

    def __init__(self, name: str, extra: str, group: "str | None" = None) -> None:
        self.name = name
        self.extra = extra
        self.group = group
        self.path = os.path.join(CACHE, f"env-{name}-{self._fingerprint()}")
        self.python = os.path.join(self.path, "bin", "python")
        self.stamp = os.path.join(self.path, "ready")

    def _fingerprint(self) -> str:
        major, minor = sys.version_info[:2]
        parts = [ROOT, sys.implementation.name, f"{major}.{minor}", sys.platform, os.uname().machine]
        digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape"))
        for source in ("pyproject.toml", os.path.join("scripts", "install.py")):
            with open(os.path.join(ROOT, source), "rb") as file:
                digest.update(file.read())
        return digest.hexdigest()[:12]

    def is_ready(self) -> bool:
        """False too when the interpreter it was made with has been removed since."""
        return os.path.isfile(self.stamp) and os.access(self.python, os.X_OK)


def start(name: str, extra: str, command: "list[str]", group: "str | None" = None, environment: str = "") -> None:
    """Become `<environment>/bin/python *command *arguments`. Does not return; ends with a sentence where it cannot.

    The environment is called like the script, unless it is that of another one.
    """
    if os.name == "nt":
        sys.exit(f"{name}: this runs on Linux and macOS. On Windows start it in WSL.")
    if sys.version_info < MINIMUM:
        import find_python

        newer = find_python.newer(name)
        os.execv(newer, [newer, *sys.argv])
    made = Environment(environment or name, extra, group)
    if not made.is_ready():
        import install

        install.prepare(made)
    os.execv(made.python, [made.python, *command, *sys.argv[1:]])
