"""Moments at which a process can be made to die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tidings import failpoints
from tidings.errors import ConfigError

PACKAGE = Path(failpoints.__file__).parent
RUN = """\
from tidings import failpoints

for turn in range(3):
    failpoints.here('relay.sent')
    print(turn, flush=True)
"""


def run(failpoint: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TIDINGS_FAILPOINT": failpoint}
    return subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=False)


def test_an_armed_process_dies_at_its_time() -> None:
    """At the second time of `relay.sent`, as by kill -9."""
    ended = run("relay.sent@2")
    assert (ended.stdout, ended.returncode) == ("0\n", -signal.SIGKILL)


def test_an_unarmed_process_and_another_failpoint_change_nothing() -> None:
    """Without the variable, and with one of another name, the process goes on."""
    for failpoint in ("", "relay.marked"):
        ended = run(failpoint)
        assert (ended.stdout, ended.returncode) == ("0\n1\n2\n", 0)


@pytest.mark.parametrize("text", ["nothing.here", "relay.sent@0", "relay.sent@", "@3", "relay.sent@x"])
def test_a_failpoint_that_is_none_is_refused(text: str) -> None:
    """A typing error would make a test that kills nobody."""
    with pytest.raises(ConfigError, match="no failpoint"):
        failpoints.arm(text)


def test_each_failpoint_is_in_the_product_and_no_other() -> None:
    """Every name of the list is called for somewhere, and nothing else is."""
    called = {name for file in PACKAGE.rglob("*.py") for name in re.findall(r'here\("([^"]+)"\)', file.read_text())}
    assert called == set(failpoints.FAILPOINTS)
