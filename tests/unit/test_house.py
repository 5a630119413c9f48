"""The rules of the house that a machine can check: layers, budgets, docstrings, and what no file may name."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tidings"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A module (or package) imports only from its own layer and those before it.
LAYERS = (
    (
        "errors",
        "clock",
        "subjects",
        "logs",
        "lifeline",
        "stepping",
        "crew",
        "threads",
        "version",
        "failpoints",
    ),  # ground floor
    ("delivery", "engine", "signals", "unit"),  # the two seams
    ("message", "codec", "bodies", "events", "retry", "rate", "settings"),  # values that everything speaks in
    ("permissions", "embedded", "engines", "sql"),  # what stands behind the seams
    (
        "batch",
        "shapes",
        "handlers",
        "returns",
        "signatures",
        "registry",
        "claims",
        "publisher",
        "schedule",
        "outbox",
        "retention",
        "versions",
        "watching",
    ),
    ("work", "order"),  # the life of a message
    ("live", "deadletters", "replay", "processes", "asyncapi"),  # one feature, one place
    ("push", "sync", "staging", "running", "connection", "lifespan", "bus"),  # one object that holds it all
    ("testing", "pytest_plugin", "conformance", "doctor", "demo", "cli", "__main__"),  # what users touch
)
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}

# These name no engine and no database, at import or later: they know the seams only.
NEUTRAL = {name for level in (0, 1, 2, 4, 5, 6) for name in LAYERS[level]}
CONCRETE = ("tidings.engines", "tidings.embedded", "tidings.sql", "sqlalchemy", "nats", "redis")

OPTIONAL = {"sqlalchemy", "starlette", "sse_starlette", "uvicorn", "fastapi", "pydantic", "rich", "asyncpg", "click"}
ENGINES = {f"tidings.engines.{path.stem}" for path in (PACKAGE / "engines").iterdir() if path.stem[0] != "_"}
NOT_AT_IMPORT = OPTIONAL | ENGINES | {"nats", "redis", "tidings.embedded", "tidings.sql", "tidings.cli"}

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 500, 60, 8
LEFT_ALONE = {".git", ".venv", ".cache", ".hypothesis", ".tidings", "dist", "node_modules"}


def part_of(module: Path) -> str:
    """The name by which a file is found in `LAYERS`: `engines` for `tidings/engines/nats/stream.py`."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def label(module: Path) -> str:
    return str(module.relative_to(ROOT))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(module: Path, *, also_later: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of what a module imports; `also_later` adds the imports inside functions."""
    pending: list[ast.AST] = [ast.parse(module.read_text())]
    package = ("tidings", *module.relative_to(PACKAGE).parts[:-1])
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif is_type_checking(node) or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not also_later):
            continue
        pending.extend(ast.iter_child_nodes(node))


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def files_of_the_project() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in LEFT_ALONE and not name.endswith(("cache", "cache__"))]
        yield from (Path(folder, name) for name in names if name not in LEFT_ALONE)


def test_every_module_has_a_docstring() -> None:
    """Every module of the package and of the scripts says what it is for."""
    modules = [*MODULES, *(ROOT / "scripts").glob("*.py")]
    assert [label(module) for module in modules if not ast.get_docstring(ast.parse(module.read_text()))] == []


def test_every_module_has_a_place_in_a_layer() -> None:
    """No file of the package lies outside the layers, where the next test would not see it."""
    assert {part_of(module) for module in MODULES} - {"__init__", *LAYER_OF} == set()


def test_imports_point_downwards() -> None:
    """No module imports, when it is loaded, from a layer above its own."""
    upwards = [
        f"{label(module)}:{line} imports {name}"
        for module in MODULES
        if (part := part_of(module)) != "__init__"
        for line, name in imports(module, also_later=False)
        if name.startswith("tidings.") and LAYER_OF.get(name.split(".")[1], -1) > LAYER_OF.get(part, len(LAYERS))
    ]
    assert upwards == []


def test_the_life_of_a_message_names_no_engine_and_no_database() -> None:
    """Below the bus only the two seams are known: no engine, broker or database is imported, not even late."""
    concrete = [
        f"{label(module)}:{line} imports {name}"
        for module in MODULES
        if part_of(module) in NEUTRAL
        for line, name in imports(module, also_later=True)
        if f"{name}.".startswith(tuple(f"{package}." for package in CONCRETE))
    ]
    assert concrete == []


def test_import_tidings_loads_no_engine_and_no_optional_package() -> None:
    """`import tidings` is quick and works without any extra: engines and drivers are loaded when a bus opens."""
    code = "import sys, tidings; tidings.Bus; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert NOT_AT_IMPORT & set(run.stdout.split()) == set()


def test_files_are_short() -> None:
    """No file of the package is longer than its budget."""
    lengths = {label(module): len(module.read_text().splitlines()) for module in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    """No function is longer than its budget, from its `def` to its end."""
    long = {
        f"{label(module)}:{function.lineno} {function.name}": length
        for module in [*MODULES, *(ROOT / "scripts").glob("*.py"), *(ROOT / "examples").rglob("*.py")]
        for function in functions(module)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_constructors_take_few_parameters() -> None:
    """No `__init__` takes more parameters than its budget, `self` not counted."""
    wide = {
        f"{label(module)}:{function.lineno}": count
        for module in MODULES
        for function in functions(module)
        if function.name == "__init__" and (count := len(parameters(function.args)) - 1) > MAX_PARAMETERS
    }
    assert wide == {}


def parameters(arguments: ast.arguments) -> list[ast.arg]:
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


# Put together here, or this file would name what it forbids.
FORBIDDEN = re.compile(
    "|".join(
        (
            r"(?<![\w.~$])/(?:root|work|home|Users)" + r"/\w",
            re.escape("pypi" + ".org"),
            "python" + r"hosted\.org",
            "registry" + r"\.(?:npmjs|yarnpkg)\.",
            "proxy" + r"\.golang\.org",
            re.escape("index" + ".crates.io"),
        )
    ).encode()
)


def test_no_file_names_a_machine_or_a_registry() -> None:
    """A clone works anywhere: no file holds somebody's path or the host of a package registry."""
    named = {
        f"{label(path)}: {found[0].decode(errors='replace')}"
        for path in files_of_the_project()
        if path.is_file() and (found := FORBIDDEN.search(path.read_bytes()))
    }
    assert named == set()


@pytest.mark.parametrize("script", ["demo", "test", ".ci/run"])
def test_scripts_can_be_started(script: str) -> None:
    """The scripts a newcomer types are executable and say what runs them."""
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env ")


def test_one_minimum_of_python() -> None:
    """The version that the scripts ask for is the one that the package declares."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    source = (ROOT / "scripts" / "bootstrap.py").read_text()
    minimum = re.search(r"^MINIMUM = \((\d+), (\d+)\)$", source, re.MULTILINE)
    assert minimum is not None
    assert declared == ">={}.{}".format(*minimum.groups())


@pytest.mark.parametrize("name", ["demo", "test", "scripts/bootstrap.py", "scripts/find_python.py"])
def test_an_old_python_can_read_what_runs_first(name: str) -> None:
    """What runs before the version is known parses as Python 3.7, the oldest grammar the parser still knows well."""
    ast.parse((ROOT / name).read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_the_papers_are_there(name: str) -> None:
    """Every paper that a visitor looks for exists and has something in it."""
    assert (ROOT / name).read_text().strip()


def test_every_page_is_found_from_the_first_one() -> None:
    """Links between the pages lead to files that are there, and from README.md every page of docs can be reached."""
    found, left = set[Path](), [ROOT / "README.md"]
    while left:
        page = left.pop()
        found.add(page)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            linked = (page.parent / target).resolve()
            assert linked.exists(), f"{page.name} links to {target}, which is not there"
            if linked.suffix == ".md" and linked not in found:
                left.append(linked)
    assert set((ROOT / "docs").glob("*.md")) <= found
