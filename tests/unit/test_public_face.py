"""What `import tidings` offers."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import tidings
from tidings import errors


def test_all_is_true() -> None:
    """Every name in `__all__` exists, none stands there twice, and nothing public is left out."""
    assert len(set(tidings.__all__)) == len(tidings.__all__)
    assert all(hasattr(tidings, name) for name in tidings.__all__)
    public = {name for name, value in vars(tidings).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(tidings.__all__) - {"__version__"}


def test_every_error_can_be_caught_by_its_public_name() -> None:
    """No error has to be imported from a module that may move."""
    tree = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert tree <= set(tidings.__all__)


def test_everything_public_has_a_docstring() -> None:
    """`help(tidings.X)` says something for every X."""
    bare = [name for name in tidings.__all__ if not name.isupper() and not inspect.getdoc(getattr(tidings, name))]
    assert bare == []


def test_the_version_is_the_installed_one() -> None:
    """`tidings.__version__` and the package's metadata agree."""
    assert tidings.__version__ == importlib.metadata.version("tidings")


def test_importing_loads_no_engine_database_or_web_framework() -> None:
    """An application pays only for what it uses, and runs without the extras."""
    unwanted = {"nats", "sqlalchemy", "pydantic", "starlette", "sse_starlette", "uvicorn", "click", "rich"}
    code = "import sys, tidings; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert unwanted & set(done.stdout.split()) == set()


def test_a_bus_without_a_name_is_refused() -> None:
    """The name becomes the source of every event, so there has to be one."""
    with pytest.raises(tidings.ConfigError, match=r"Bus\('todo'\)"):
        tidings.Bus("")
