"""`module:name`: the user's own bus and web application."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..bus import Bus

_OURS: Final = Path(__file__).parent.parent


def load_bus(where: str | None) -> Bus:
    """The bus at `module:name` (`module` alone means `module:bus`). Raises `ConfigError` saying what is wrong."""
    from ..bus import Bus

    if not where:
        raise ConfigError(
            "which bus? Write module:bus, as in `tidings run app.handlers:bus`, or set TIDINGS_APP or "
            'app = "app.handlers:bus" below [tool.tidings] in pyproject.toml'
        )
    found = load_object(where, usual="bus")
    if not isinstance(found, Bus):
        raise ConfigError(f"{where!r} is no tidings.Bus but a {type(found).__name__}")
    return found


def load_object(where: str, *, usual: str) -> Any:
    """What is at `module:name`; the working directory is looked in first, as Python itself does."""
    module_name, _, name = where.partition(":")
    _check_no_path(module_name, name or usual)
    if not sys.flags.safe_path and "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"there is no module {module_name!r} here: start from the folder it lies in") from None
        raise ConfigError(f"{module_name!r} cannot be imported: {_told(error)}") from error
    except Exception as error:
        raise ConfigError(f"{module_name!r} cannot be imported: {_told(error)}") from error
    for part in (name or usual).split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"the module {module_name!r} has no {name or usual!r}") from None
    return found


def _check_no_path(where: str, name: str) -> None:
    """Raise `ConfigError` that names the module for who has given its file."""
    if "/" not in where and not where.startswith(".") and not where.endswith(".py"):
        return
    path = Path(where.removesuffix(".py"))
    outside = path.is_absolute() or ".." in path.parts
    meant = path.name if outside else ".".join(path.parts).lstrip(".")
    there = f" from the folder {path.parent}" if outside else ""
    raise ConfigError(f"{where!r} is a path, and Python wants a module: did you mean {meant}:{name}{there}?")


def _told(error: BaseException) -> str:
    """The error and the line of the user's file that it comes from: not ours, which refused what stands there, and
    not a library's."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not Path(frame.filename).is_relative_to(_OURS)]
    theirs = [frame for frame in others if not _is_library(frame.filename)]
    frame = (theirs or others or frames)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"


def _is_library(file: str) -> bool:
    return file.startswith("<") or "site-packages" in Path(file).parts
