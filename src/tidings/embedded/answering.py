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


def silence(directory: Path) -> tuple[str, str]:
    """Why no broker answers in the directory, and what to do about it."""
    layout = Layout.of(directory)
    server, supervisor = holder_of(layout.fence), holder_of(layout.supervisor_lock)
    state = State.read(layout.state) if supervisor is not None else None
    logs = f"See {layout.server_log} and {layout.supervisor_log}"
    if state is not None and state.phase == "full":
        return f"the broker in {directory} was stopped, as its disk is full", "It starts by itself once there is space"
    if server is not None:
        said = f"the broker in {directory} runs (pid {server}) and does not answer"
        return said, f"It is starting, overloaded or stopped (SIGSTOP). {logs}"
    if supervisor is not None:
        why = f": {state.problem}" if state is not None and state.problem else ""
        return f"the broker in {directory} is being started{why}", logs
    return f"no broker runs in {directory}", "Start one: tidings up, or tidings demo"


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
