"""The NATS services protocol (ADR-32): tools such as `nats micro ls` find who answers requests, and count them.

Nothing else is needed for it: `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` are answered by every process that serves.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ...version import __version__
from .connection import Frame
from .link import Link
from .strangers import answerable
from .subscriptions import Subscription

_VERBS: Final = ("PING", "INFO", "STATS")


class Endpoint:
    """One subject that is served here, and what came of it so far."""

    def __init__(self, subject: str, group: str) -> None:
        self.subject = subject
        self.group = group
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.nanoseconds = 0

    def answered(self, begun: int, error: str) -> None:
        """A request is over that was begun then (`time.monotonic_ns`), with its error or "" """
        self.requests += 1
        self.nanoseconds += time.monotonic_ns() - begun
        if error:
            self.errors += 1
            self.last_error = error[:200]

    def info(self) -> dict[str, Any]:
        """What it is."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.subject)
        return {"name": name, "subject": self.subject, "queue_group": self.group, "metadata": {}}

    def stats(self) -> dict[str, Any]:
        """What it is and did."""
        return self.info() | {
            "num_requests": self.requests,
            "num_errors": self.errors,
            "last_error": self.last_error,
            "processing_time": self.nanoseconds,
            "average_processing_time": self.nanoseconds // max(1, self.requests),
        }


class Services:
    """What one connection serves, by the name of its group: a service each."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._services: dict[str, _Service] = {}

    async def enter(self, endpoint: Endpoint) -> None:
        """Be found from now on."""
        service = self._services.get(endpoint.group)
        if service is None:
            service = self._services[endpoint.group] = _Service(self._link, endpoint.group)
        service.endpoints.append(endpoint)
        if len(service.endpoints) == 1:
            await service.answer()

    async def leave(self, endpoint: Endpoint) -> None:
        """Be found no longer."""
        service = self._services.get(endpoint.group)
        if service is None or endpoint not in service.endpoints:
            return
        service.endpoints.remove(endpoint)
        if not service.endpoints:
            del self._services[endpoint.group]
            await service.end()


class _Service:
    def __init__(self, link: Link, group: str) -> None:
        self.endpoints: list[Endpoint] = []
        self._link = link
        self._subscriptions: list[Subscription] = []
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._identity: dict[str, Any] = {
            "name": re.sub(r"[^A-Za-z0-9_-]+", "-", group),
            "id": secrets.token_hex(8),
            "version": __version__,
            "metadata": {},
        }

    async def answer(self) -> None:
        name, id = self._identity["name"], self._identity["id"]
        for verb in _VERBS:
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{id}"):
                self._subscriptions.append(await self._link.subscribe(subject, self._asked))

    async def end(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()

    def _asked(self, frame: Frame) -> None:
        if answerable(frame.reply):
            answer = msgspec.json.encode(self._about(frame.subject.split(".")[1]))
            self._link.spawn(self._link.publish(frame.reply, answer))

    def _about(self, verb: str) -> dict[str, Any]:
        about = {"type": f"io.nats.micro.v1.{verb.lower()}_response", **self._identity}
        if verb == "INFO":
            endpoints = [endpoint.info() for endpoint in self.endpoints]
            about |= {"description": "handlers of a Tidings application", "endpoints": endpoints}
        elif verb == "STATS":
            about |= {"started": self._started, "endpoints": [endpoint.stats() for endpoint in self.endpoints]}
        return about
