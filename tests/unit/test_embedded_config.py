"""What the server is told, checked by the server itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tidings.embedded import Address, BrokerSettings, find_binary
from tidings.embedded.config import GIB, credentials, server_config, server_environment, write_private
from tidings.embedded.locate import Layout
from tidings.embedded.state import State


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.of(tmp_path / "a 'b\" $HOME")
    layout.prepare()
    return layout


def test_the_server_accepts_its_configuration(layout: Layout) -> None:
    """`nats-server -t` finds no fault with it, even with an odd path, and it stays on this machine."""
    config = server_config(layout, BrokerSettings(), credentials(layout, create=True), None)
    write_private(layout.config, json.dumps(config, ensure_ascii=False))
    checked = subprocess.run(
        [find_binary().path, "-t", "-c", layout.config], capture_output=True, text=True, env=server_environment()
    )
    assert checked.returncode == 0, checked.stderr
    assert config["listen"] == "127.0.0.1:-1"
    assert "http" not in config
    assert config["jetstream"]["sync_interval"] == "always"


def test_the_store_is_bounded(layout: Layout) -> None:
    """At most 10 GiB and never more than the disk has; a setting is taken as it is."""
    passwords = credentials(layout, create=True)
    bound = server_config(layout, BrokerSettings(), passwords, 4222)["jetstream"]["max_file_store"]
    assert 0 < bound <= 10 * GIB
    own = server_config(layout, BrokerSettings(max_file_store=123), passwords, 4222)
    assert own["jetstream"]["max_file_store"] == 123


def test_passwords_are_made_once_and_kept_private(layout: Layout) -> None:
    """Three different 256-bit passwords, the same at each call, in a file of mode 0600 whatever the umask."""
    before = os.umask(0)
    try:
        made = credentials(layout, create=True)
    finally:
        os.umask(before)
    assert set(made) == {"publish", "work", "admin"}
    assert len(set(made.values())) == 3
    assert all(len(bytes.fromhex(password)) == 32 for password in made.values())
    assert credentials(layout) == credentials(layout, create=True) == made
    assert layout.credentials.stat().st_mode & 0o777 == 0o600


def test_reading_passwords_never_makes_any(layout: Layout) -> None:
    """A client that comes too early sees that there are none; a damaged file is only replaced by the supervisor."""
    with pytest.raises(FileNotFoundError):
        credentials(layout)
    layout.credentials.write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        credentials(layout)
    assert credentials(layout, create=True) == credentials(layout)


def test_no_secret_of_the_application_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's environment is chosen, not inherited; what the user says about Go's limits is kept."""
    monkeypatch.setenv("TIDINGS_DATABASE_URL", "postgresql://u:secret@db/x")
    monkeypatch.setenv("GOMEMLIMIT", "100MiB")
    environment = server_environment()
    assert "secret" not in str(environment)
    assert environment["GOMEMLIMIT"] == "100MiB"
    assert int(environment["GOMAXPROCS"]) >= 1


def test_an_address_shows_its_password_only_when_asked() -> None:
    """Printing and `repr` mask it, `url` has it."""
    address = Address("127.0.0.1", 4222, "work", "s3cret")
    assert "s3cret" not in f"{address} {address!r}"
    assert address.url == "nats://work:s3cret@127.0.0.1:4222"


def test_a_damaged_report_is_none(tmp_path: Path) -> None:
    """A state file that is missing, cut short or of another version tells nothing instead of raising."""
    file = tmp_path / "state.json"
    assert State.read(file) is None
    for text in ("{", "[]", '{"supervisor": 1, "unheard": 2}'):
        file.write_text(text)
        assert State.read(file) is None
    State(7, port=4222).write(file)
    assert State.read(file) == State(7, port=4222)
