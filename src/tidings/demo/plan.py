"""What runs, where its data are, and where the application is found."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from ..cli import attend
from ..cli.options import settings
from ..embedded import project_directory
from ..errors import ConfigError
from ..processes import Program

GROUPS: Final = {"save": "save-handler", "audit": "audit-handler", "mutate": "mutating-handler"}
"""The short names of the groups."""
USUAL_PORT: Final = 8080
_BUS: Final = "todo.handlers:bus"
_APP: Final = "todo.web:app"
_PACKAGE: Final = Path(__file__).parent  # the wheel has the application here
CHECKOUT: Final = Path(__file__).parents[3]
"""Where the clone is, if this is one."""


class Demo(msgspec.Struct, frozen=True):
    """One demo, as it was asked for."""

    data: Path
    database_url: str
    parts: tuple[str, ...]
    """Short names of the groups that run."""
    scales: dict[str, int]
    port: int | None
    """None is the usual one, or any."""
    valkey: str = ""
    """URL of a Valkey of the demo's own, which carries instead of the embedded broker."""

    @classmethod
    def of(
        cls, data: Path | None, port: int | None, parts: str, scales: Sequence[str], database_url: str | None
    ) -> Demo:
        """From what was typed. Raises `ConfigError` for a group that there is not."""
        folder = (data or default_data()).expanduser().absolute()
        chosen = tuple(dict.fromkeys(short(part) for part in parts.split(",") if part.strip()))
        scaled = {short(group): count for group, count in attend.parse_scales(scales).items()}
        for group in scaled:
            if group not in chosen:
                raise ConfigError(f"--scale {group}: it does not run; add it: --with {','.join((*chosen, group))}")
        database = database_url or os.environ.get("TIDINGS_DATABASE_URL") or own_database(folder)
        return cls(folder, database, chosen, scaled, port)

    @property
    def url(self) -> str:
        """Of the engine."""
        return self.valkey or f"embedded:{self.data}"

    @property
    def valkey_folder(self) -> Path:
        """Where a Valkey of the demo's own has its data."""
        return self.data / "valkey"

    @property
    def foreign_database(self) -> bool:
        """Whether it is another than the file in our folder."""
        return self.database_url != own_database(self.data)

    @property
    def log(self) -> Path:
        """What the terminal shows, kept."""
        return self.data / "log" / "demo.log"

    def programs(self) -> list[Program]:
        """The worker processes."""
        return [self.at_home(worker) for part in self.parts for worker in self._workers(part)]

    def _workers(self, part: str) -> list[Program]:
        group, count, grace = GROUPS[part], self.scales.get(part, 1), settings().grace
        names = [group] if count == 1 else [f"{group} #{n}" for n in range(1, count + 1)]
        return [attend.worker(name, _BUS, ("--group", group), grace=grace) for name in names]

    def web(self, listener: attend.Listener) -> Program:
        """The web process."""
        return self.at_home(attend.web(_APP, listener))

    def at_home(self, program: Program) -> Program:
        """The program with the application on its path, and everything it stores below our folder."""
        paths = [str(home()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **program.environment,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONSAFEPATH": "1",  # a package `todo` in the working directory is somebody else's
            "TIDINGS_URL": self.url,
            "TIDINGS_NAMESPACE": "tidings",
            "TIDINGS_DATABASE_URL": self.database_url,
            "TIDINGS_DATA": str(self.data),
            "TIDINGS_COMMAND": command(),
            "TODO_MUTATE": "1" if "mutate" in self.parts else "0",
        }
        return msgspec.structs.replace(program, environment=environment)


def own_database(folder: Path) -> str:
    """The URL of the database that the system keeps beside its broker, unless it is given another."""
    return f"sqlite:///{folder / 'todo.sqlite3'}"


def short(name: str) -> str:
    """The short name of a group, given either. Raises `ConfigError`."""
    name = name.strip()
    for word, group in GROUPS.items():
        if name in (word, group):
            return word
    raise ConfigError(f"the to-do system has no handlers {name!r}; it has {', '.join(GROUPS)}")


def command() -> str:
    """How to call the command line from any folder."""
    script = Path(sys.executable).with_name("tidings")
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    if any(Path(folder, "tidings").exists() for folder in folders):
        return "tidings"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m tidings"
    of_clone = CHECKOUT / "tidings"
    by_clone = of_clone.is_file() and CHECKOUT / ".cache" in script.parents  # `./demo` was started
    return shlex.quote(str(of_clone if by_clone else script))


def home() -> Path:
    """The folder in which the package `todo` lies."""
    for folder in (_PACKAGE, CHECKOUT / "examples"):
        if (folder / "todo" / "handlers.py").is_file():
            return folder
    raise ConfigError("the application `todo` is not part of this installation: run ./demo in a clone instead")


def default_data() -> Path:
    """In a clone its `.tidings`, where every other command looks as well; elsewhere a folder of its own, so that it
    does not mix with what the project there stores."""
    usual = project_directory()
    return usual if usual.parent == CHECKOUT else Path.cwd() / ".tidings-demo"
