"""The checks behind `./test`: lint, types and tests, each run to its end, and one line that says what ran.

`./test soak` and `./test crash-matrix` are apart from them: they take minutes, and have verdicts of their own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
sys.path.insert(0, str(TESTS))

import needs  # noqa: E402  (lies beside the tests, which use it too)

LINT = {
    "ruff check": ["ruff", "check"],
    "ruff format": ["ruff", "format", "--check"],
    "mypy": ["mypy"],
}
APART = {"soak": "soak", "crash-matrix": "crash"}
"""What takes minutes and has a verdict of its own, and the package below `tests` that it is."""
SIDE_BY_SIDE = ("-n", "auto", "--dist", "worksteal")
"""Most tests wait for a server or for time to pass: several of them do so at once. With `-- --pdb` or `-- -n0` one."""
USAGE = 2


@dataclass(frozen=True)
class Selection:
    """What to run: lint or not, and which tests (none, some paths, or everything)."""

    lint: bool
    tests: tuple[str, ...] | None
    """Paths for pytest; empty means all of them, None means no tests."""
    pytest_args: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        return self.lint and self.tests == () and not self.pytest_args

    def checks(self) -> dict[str, list[str]]:
        """Command lines by name, as modules of the Python that runs this."""
        chosen = dict(LINT) if self.lint else {}
        if self.tests is not None:
            chosen["pytest"] = ["pytest", *SIDE_BY_SIDE, *self.tests, *self.pytest_args]
        return {name: [sys.executable, "-m", *command] for name, command in chosen.items()}


def areas() -> list[str]:
    """The folders of tests, as they are called on the command line."""
    return sorted({path.parent.name for path in TESTS.glob("*/test_*.py")})


def parse(argv: Sequence[str]) -> Selection:
    """Ends the program with status 2 and a sentence for an area that does not exist."""
    words, pytest_args = list(argv), []
    if "--" in words:
        split = words.index("--")
        words, pytest_args = words[:split], words[split + 1 :]
    parser = argparse.ArgumentParser(
        prog="./test",
        description="Run lint, types and all tests; or only what is named. Exit status: 0 passed, 1 failed, 2 usage.",
        epilog="Whatever follows -- goes to pytest: ./test system -- -k push -x. Minutes of random kill -9, with a "
        "verdict: ./test soak --help. Kills at every failpoint: ./test crash-matrix --help",
        usage="%(prog)s [AREA or PATH ...] [-- PYTEST ARGUMENTS]",
    )
    parser.add_argument("what", nargs="*", metavar="AREA or PATH", help=f"lint, {', '.join(areas())}, or a path")
    chosen = parser.parse_args(words).what
    if not chosen:
        return Selection(lint=not pytest_args, tests=(), pytest_args=tuple(pytest_args))
    paths = []
    for word in chosen:
        if path := path_of(word):
            paths.append(path)
        elif word != "lint":
            parser.error(f"there is no {word!r}: name one of lint, {', '.join(areas())}, or a path to tests")
    wants_tests = bool(paths or pytest_args)
    return Selection("lint" in chosen, tuple(paths) if wants_tests else None, tuple(pytest_args))


def path_of(word: str) -> str | None:
    """`unit` and `tests/unit/test_x.py::test_y` alike, or None if there is no such thing."""
    if word in areas():
        return str(TESTS / word)
    return word if (ROOT / word.partition("::")[0]).exists() else None


def workers() -> int:
    """How many processes run the tests: one more than there are cores, since most of them wait most of the time."""
    return 1 + (os.cpu_count() or 1)


def run(name: str, command: Sequence[str]) -> bool:
    """Run one check to its end; True if it passed."""
    print(f"── {name}", file=sys.stderr, flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def summary(results: dict[str, bool], left_out: Sequence[str], seconds: float) -> str:
    """One line: what passed, what failed, what was not looked at."""
    parts = [
        ("failed", [name for name, passed in results.items() if not passed]),
        ("passed", [name for name, passed in results.items() if passed]),
        ("left out", left_out),
    ]
    said = [f"{word}: {', '.join(names)}" for word, names in parts if names]
    return f"./test: {'; '.join(said)} ({seconds:.0f} s)"


def apart(program: str, arguments: Sequence[str]) -> int:
    """Instead of the checks: one of `APART`, with an exit status of its own."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run([sys.executable, "-m", program, *arguments], env=environment, check=False).returncode


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] in APART:
        return apart(APART[argv[0]], argv[1:])
    selection = parse(argv)
    lacking = needs.missing() if selection.everything else []
    if lacking and needs.nothing_may_be_left_out():
        for need in lacking:
            print(f"./test: CI=true allows nothing to be left out; {need.notice()}", file=sys.stderr)
        return 1
    # Tests that start our commands find those of this environment first.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("PYTEST_XDIST_AUTO_NUM_WORKERS", str(workers()))
    began = time.monotonic()
    results = {name: run(name, command) for name, command in selection.checks().items()}
    left_out = [f"{need.marker} tests ({need.lacking})" for need in lacking]
    print(summary(results, left_out, time.monotonic() - began), file=sys.stderr)
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("./test: interrupted", file=sys.stderr)
        sys.exit(130)
