"""Find a Python that is new enough when the one we were started with is not. In the words of Python 3.6."""

import shutil
import subprocess
import sys

# The versions we test with first, then those to come.
VERSIONS = ("3.13", "3.12", "3.11", "3.14", "3.15")
PROBE = "import sys; print(sys.executable if sys.version_info >= (3, 11) else '')"


def newer(name: str) -> str:
    """The path of a Python from PATH or known to uv; ends the program with a sentence when there is none."""
    candidates = [shutil.which("python" + version) for version in VERSIONS]
    found = next(filter(None, map(probe, candidates)), None) or probe(known_to_uv())
    if found is None:
        major, minor = sys.version_info[:2]
        sys.exit(
            f"{name}: Tidings needs Python 3.11 or newer. This is Python {major}.{minor} ({sys.executable}), "
            "and PATH has no newer one. Install one (apt-get install python3.11, brew install python, "
            "uv python install 3.13) and start again."
        )
    return found


def probe(candidate: "str | None") -> "str | None":
    """The interpreter behind a name, if it really starts: version managers put names on PATH that do not."""
    return run([candidate, "-c", PROBE]) if candidate else None


def known_to_uv() -> "str | None":
    uv = shutil.which("uv")
    return run([uv, "python", "find", "--no-project", "--no-python-downloads", ">=3.11"]) if uv else None


def run(command: "list[str]") -> "str | None":
    """The output of a command, or None if it failed, said nothing or took too long."""
    try:
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return output.decode("utf-8", "surrogateescape").strip() or None
