"""Whether a broker answers in a directory, and where: for those who do not join it. Loads little."""

from __future__ import annotations

from pathlib import Path

from tidings.permissions import User

from .config import Address, credentials
from .locate import Layout
from .locks import holder_of
from .probe import ProbeError, probe
from .state import State


def locate(directory: Path, *, user: User = "publish") -> Address | None:
    """Where the broker of `directory` answers right now, or None when none does. Starts and makes nothing.

    For one-shots: it does not keep the broker up. Blocks for some milliseconds.
    """
    layout = Layout.of(directory)
    if holder_of(layout.fence) is None:
        return None
    try:
        return answering(layout, user)
    except ProbeError:
        return None


def answering(layout: Layout, user: User) -> Address:
    """The address that the last report names, if our server really answers there."""
    state = State.read(layout.state)
    if state is None or state.port is None:
        raise ProbeError(f"nothing is known of a server in {layout.root}")
    try:
        address = Address("127.0.0.1", state.port, user, credentials(layout)[user])
    except (OSError, ValueError) as error:
        raise ProbeError(f"{layout.credentials}: {error}") from error
    probe(address)
    return address
