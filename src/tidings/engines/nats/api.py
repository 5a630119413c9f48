"""JetStream's API as raw JSON: nothing that this version does not know is lost on the way."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from ...errors import EngineError, EngineUnavailable, InvalidMessage, StoreFull, Unconfirmed
from .connection import Frame
from .link import Denied, Disconnected, Link
from .strangers import control_of, is_foreign

NO_CONSUMER: Final = 10014
NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059
OVERLAP: Final = 10065
WRONG_SEQUENCE: Final = 10071
CONSUMER_EXISTS: Final = 10148
DUPLICATE_UNDER_WAY: Final = 10158
_GONE: Final = (10043, 10057, NO_MESSAGE)  # deleting what is not there any more
_FULL: Final = (10002, 10023, 10047, 10077, 10122)
# No leader yet, a cluster that is just electing, or another write to the subject is still on its way to the copies:
# whether that one counts is not decided, so whether a condition holds, or an id is known, is not either.
_LATER: Final = (10008, 10009, 10118, DUPLICATE_UNDER_WAY, 10164)

_EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
_TRY: Final = 5.0
"""Seconds after which an answer counts as lost, with the server that would have given it, and is asked for again."""
_FIRST_TRY: Final = 1.0
"""The same for the first answer; a cluster that elects a leader answers nobody, and then all at once."""
_BEHIND: Final = 0.01
_ROUNDS: Final = 5
PAGE: Final = 500
_PAGE_BYTES: Final = 8 * 1024 * 1024


class ApiError(EngineError):
    """The server refused; `code` is JetStream's own error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} (JetStream error {code})")
        self.code = code


class Ack(msgspec.Struct):
    """The server's word that a message is stored."""

    stream: str
    seq: int
    duplicate: bool = False
    count: int = 1
    """Messages of the batch it confirms; `seq` is the last one's."""


class _Answer(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    count: int = 1
    error: dict[str, Any] | None = None


_ANSWERS: Final = msgspec.json.Decoder(_Answer)


def expect(sequence: int, subject: str = "") -> dict[str, str]:
    """Headers: store only if the last message of `subject` (default: of the message's own) is still `sequence`."""
    headers = {_EXPECT: str(sequence)}
    if subject:
        headers[f"{_EXPECT}-Subject"] = subject
    return headers


def read_ack(frame: Frame) -> Ack | None:
    """The acknowledgement in an answer to a publish; None when the server asks to try again."""
    if frame.status == "503":
        return None
    try:
        answer = _ANSWERS.decode(frame.body)
    except msgspec.DecodeError:
        answer = _Answer()
    if answer.error is not None:
        _refuse(answer.error)
        return None
    if not answer.stream:
        # An empty answer looks like success to those who only count answers: such a message was not stored.
        raise EngineUnavailable(f"the server's answer to a publish is none: {frame.body[:80]!r}")
    return Ack(answer.stream, answer.seq, answer.duplicate, answer.count)


def _refuse(error: dict[str, Any]) -> None:
    """Raise what an error of the server means to us; returns for one that passes by itself."""
    code, text = error.get("err_code", 0), error.get("description", "refused")
    if code in _LATER or (error.get("code") == 503 and code not in _FULL):
        return
    if code in _FULL:
        raise StoreFull(f"the server stores nothing more: {text}. Nothing is lost; make space or raise its limit")
    if code == 10097 or code == 10054:
        raise InvalidMessage(f"the server refuses the message: {text}")
    raise ApiError(code, text)


class JetStream:
    """Requests to the server about streams, consumers and single messages, repeated while no leader answers."""

    def __init__(self, link: Link, timeout: float) -> None:
        self.link = link
        self.timeout = timeout
        self.replicated = False
        """Whether there are copies: any of them answers a direct get, also one that is a moment behind."""
        self._direct = True
        """Whether this user may read by direct gets; else each message is asked for by itself."""

    async def call(self, verb: str, body: object = None, *, timeout: float | None = None) -> dict[str, Any]:
        """One API request. Raises `ApiError`, `EngineUnavailable` when nobody answered in time.

        It may be sent more than once; all that is used here may be repeated.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        frame = await self._ask(f"$JS.API.{verb}", data, timeout or self.timeout)
        answer: dict[str, Any] = msgspec.json.decode(frame.body)
        if (error := answer.get("error")) is not None:
            raise ApiError(error.get("err_code", 0), f"{verb}: {error.get('description', 'refused')}")
        return answer

    async def _ask(self, subject: str, data: bytes, timeout: float) -> Frame:
        loop = asyncio.get_running_loop()
        until, pause, patience, why = loop.time() + timeout, 0.02, _FIRST_TRY, "no answer"
        while (left := until - loop.time()) > 0:
            try:
                await self.link.ready(left)
                frame = await self.link.request(subject, data, timeout=min(left, patience))
                if frame.status == "503":
                    why = "JetStream does not answer there (not enabled, or electing a leader)"
                elif not self._passing(frame):
                    return frame
            except Disconnected as error:
                why = str(error)
            except TimeoutError:
                why, patience = "no answer in time", min(2 * patience, _TRY)
            await asyncio.sleep(min(pause, max(0.0, until - loop.time())))
            pause = min(0.5, pause * 2)
        raise EngineUnavailable(f"{self.link.server}: {subject}: {why}")

    @staticmethod
    def _passing(frame: Frame) -> bool:
        """Whether an answer only says that it is too early."""
        return any(b'"err_code":%d,' % code in frame.body[:400] for code in _LATER)

    async def store(self, subject: str, body: bytes, headers: dict[str, str]) -> Ack:
        """Publish one message that carries its own condition to Control, repeating it until answered.

        Raises `ApiError` (10071: the condition does not hold, perhaps because an earlier try was stored),
        `StoreFull`, `Unconfirmed`.
        """
        for _ in range(_ROUNDS):
            try:
                return await self.store_once(subject, body, headers)
            except ApiError as error:
                conditioned = headers.get(f"{_EXPECT}-Subject", subject)
                if error.code != WRONG_SEQUENCE or not await self.clear(conditioned):
                    raise
        raise EngineUnavailable(f"{subject}: what is not ours is written there without end")

    async def clear(self, subject: str) -> bool:
        """Remove from a subject of Control what is not ours; whether there was any."""
        stream, found = control_of(subject), False
        async for frames in self.pages(stream, subject, 1):
            for frame in filter(is_foreign, frames):
                await self.delete_message(stream, int(frame.header("Nats-Sequence")))
                found = True
        return found

    async def store_once(self, subject: str, body: bytes, headers: dict[str, str]) -> Ack:
        """`store` that takes nothing out of the way of its condition."""
        loop = asyncio.get_running_loop()
        until, pause, why, sent = loop.time() + self.timeout, 0.02, "no answer in time", False
        while (left := until - loop.time()) > 0:
            try:
                await self.link.ready(left)
            except (EngineUnavailable, StoreFull) as error:
                if not sent:
                    raise
                why = str(error)
                break
            try:
                frame = await self.link.request(subject, body, headers, timeout=min(left, self.timeout / 2, _TRY))
                sent = True
                if (ack := read_ack(frame)) is not None:
                    return ack
                why = "the stream has no leader"
            except Disconnected as error:
                why, sent = str(error), True
            except TimeoutError:
                sent = True
            await asyncio.sleep(min(pause, max(0.0, until - loop.time())))
            pause = min(0.5, pause * 2)
        if sent:
            raise Unconfirmed(f"{subject}: no confirmation within {self.timeout:g} s ({why}): stored or not")
        raise EngineUnavailable(f"{subject}: {why}")

    async def stream(self, name: str) -> dict[str, Any]:
        return await self.call(f"STREAM.INFO.{name}")

    async def subjects(self, stream: str, filter: str) -> dict[str, int]:
        """The subjects in a stream that match, with their counts."""
        found: dict[str, int] = {}
        while True:
            request = {"subjects_filter": filter, "offset": len(found)}
            page = (await self.call(f"STREAM.INFO.{stream}", request))["state"].get("subjects") or {}
            fresh = len(found)
            found.update(page)
            if len(found) == fresh or len(page) < 100_000:
                return found

    async def consumer(self, stream: str, name: str) -> dict[str, Any] | None:
        try:
            return await self.call(f"CONSUMER.INFO.{stream}.{name}")
        except ApiError as error:
            if error.code in (NO_CONSUMER, NO_STREAM):
                return None
            raise

    async def consumers(self, stream: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = await self.call(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            found += page.get("consumers") or []
            if not page.get("consumers") or len(found) >= page["total"]:
                return found

    async def consumer_names(self, stream: str) -> list[str]:
        """All of them, also those that nobody answers for at the moment."""
        found: list[str] = []
        while True:
            page = await self.call(f"CONSUMER.NAMES.{stream}", {"offset": len(found)})
            found += page.get("consumers") or []
            if not page.get("consumers") or len(found) >= page["total"]:
                return found

    async def put_consumer(
        self, stream: str, config: dict[str, Any], action: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """`create` (raises `ApiError` 10148 when it exists otherwise) or `update`."""
        request = {"stream_name": stream, "config": config, "action": action}
        return await self.call(f"CONSUMER.CREATE.{stream}.{config['name']}", request, timeout=timeout)

    async def pause(self, stream: str, consumer: str, until: str | None) -> None:
        await self.call(f"CONSUMER.PAUSE.{stream}.{consumer}", {"pause_until": until} if until else {})

    async def delete_consumer(self, stream: str, name: str) -> None:
        try:
            await self.call(f"CONSUMER.DELETE.{stream}.{name}")
        except ApiError as error:
            if error.code not in (NO_CONSUMER, NO_STREAM):
                raise

    async def purge(self, stream: str, filter: str, below: int | None = None) -> int:
        """Remove what matches, or only what stands below a sequence; returns how many."""
        request = {"filter": filter} | ({"seq": below} if below else {})
        return int((await self.call(f"STREAM.PURGE.{stream}", request)).get("purged", 0))

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """Whether it was there. After a lost answer the repeat says no although we removed it."""
        try:
            await self.call(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except ApiError as error:
            if error.code in _GONE:
                return False
            raise
        return True

    async def last(self, stream: str, subject: str) -> Frame | None:
        """The last message of ours on a subject of Control; sees every write that was confirmed."""
        return await self.found(await self.ask_last(stream, subject), stream, subject)

    async def ask_last(self, stream: str, subject: str) -> asyncio.Future[Frame] | None:
        """`last`, begun: many may be under way. None when it could not be sent."""
        if not self._direct:
            return None
        try:
            await self.link.ready(self.timeout)
            if self.replicated:
                which = msgspec.json.encode({"last_by_subj": subject})
                return await self.link.ask(f"$JS.API.STREAM.MSG.GET.{stream}", which)
            return await self.link.ask(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        except Disconnected:
            return None

    async def found(self, asked: asyncio.Future[Frame] | None, stream: str, subject: str) -> Frame | None:
        """What `ask_last` found; asks again when the answer was lost."""
        return await self._ours(await self._found(asked, stream, subject), stream, subject)

    async def _found(self, asked: asyncio.Future[Frame] | None, stream: str, subject: str) -> Frame | None:
        if not self._direct:
            return await self.message(stream, subject)
        try:
            if asked is None:
                raise TimeoutError
            async with asyncio.timeout(min(self.timeout / 2, _TRY)):
                frame = await asked
            if frame.status == "503":
                raise TimeoutError
            if self.replicated:
                return self._got(frame)
        except (TimeoutError, Disconnected):
            if self.replicated:
                return await self.message(stream, subject)
            frame = await self._ask(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", self.timeout)
        except Denied:
            self._direct = False
            return await self.message(stream, subject)
        return None if frame.status == "404" or frame.header("Status") == "404" else frame

    async def message(self, stream: str, subject: str) -> Frame | None:
        """The last message of ours on a subject of Control, read from the leader: sees every write that was
        confirmed."""
        return await self._ours(await self._get(stream, {"last_by_subj": subject}), stream, subject)

    async def _ours(self, last: Frame | None, stream: str, subject: str) -> Frame | None:
        """What stands below, if the last message of a subject is a stranger's."""
        if last is None or not is_foreign(last):
            return last
        ours = None
        async for frames in self.pages(stream, subject, 1):
            ours = next((frame for frame in reversed(frames) if not is_foreign(frame)), ours)
        if ours is None:  # nor shall anybody count them
            self.link.spawn(self._sweep(subject))
        return ours

    async def _sweep(self, subject: str) -> None:
        """`clear`, by those who may."""
        await self.clear(subject)

    async def _get(self, stream: str, which: dict[str, Any]) -> Frame | None:
        return self._got(await self._ask(f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode(which), self.timeout))

    @staticmethod
    def _got(frame: Frame) -> Frame | None:
        """The message in the leader's answer, None when it has none."""
        answer: dict[str, Any] = msgspec.json.decode(frame.body)
        if (error := answer.get("error")) is None:
            return _decoded(answer["message"])
        if error.get("err_code") == NO_MESSAGE:
            return None
        if error.get("err_code") in _LATER:
            raise TimeoutError
        raise ApiError(error.get("err_code", 0), f"reading: {error.get('description', 'refused')}")

    async def standing(self, stream: str, filter: str, first: int) -> int | None:
        """The first sequence from `first` on that holds something on the filter, by the stream's leader."""
        try:
            found = await self.call(f"STREAM.MSG.GET.{stream}", {"seq": first, "next_by_subj": filter})
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        return int(found["message"]["seq"])

    async def pages(self, stream: str, filter: str, first: int, size: int = PAGE) -> AsyncIterator[list[Frame]]:
        """The stored messages that match from sequence `first` on."""
        while True:
            frames, more = await self._some(stream, filter, first, size)
            if frames:
                yield frames
                first = int(frames[-1].header("Nats-Sequence")) + 1
            if frames and more:
                continue
            if not (self.replicated and self._direct) or await self.standing(stream, filter, first) is None:
                return
            await asyncio.sleep(_BEHIND)  # the leader has more than the copy that answered

    async def _some(self, stream: str, filter: str, first: int, size: int) -> tuple[list[Frame], bool]:
        """The next messages that match, and whether there may be more."""
        if self._direct:
            request = {"seq": first, "next_by_subj": filter, "batch": size, "max_bytes": _PAGE_BYTES}
            try:
                frames = await self._page(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request))
            except Denied:
                self._direct = False
            else:
                return frames, bool(frames) and frames[-1].header("Nats-Num-Pending") not in ("", "0")
        found: list[Frame] = []
        while len(found) < size:
            frame = await self._get(stream, {"seq": first, "next_by_subj": filter})
            if frame is None:
                return found, False
            found.append(frame)
            first = int(frame.header("Nats-Sequence")) + 1
        return found, True

    async def first_since(self, stream: str, filter: str, time: str) -> int | None:
        """The first sequence that matches and was stored at `time` (RFC 3339) or later."""
        request = {"start_time": time, "next_by_subj": filter, "batch": 1}
        frames = await self._page(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request))
        return int(frames[0].header("Nats-Sequence")) if frames else None

    async def _page(self, subject: str, data: bytes) -> list[Frame]:
        loop = asyncio.get_running_loop()
        until, why = loop.time() + self.timeout, "no answer"
        while (left := until - loop.time()) > 0:
            try:
                await self.link.ready(left)
                frames, whole = await self.link.collect(subject, data, _ends, min(left, self.timeout / 2, _TRY))
            except Disconnected as error:
                why = str(error)
                continue
            last = frames[-1].header("Status") if frames else ""
            if whole and last in ("204", "404", "408"):
                return frames[:-1]
            why = last or "no answer in time"
            await asyncio.sleep(0.05)
        raise EngineUnavailable(f"{subject}: {why}")


def _ends(frame: Frame) -> bool:
    return bool(frame.header("Status")) and not frame.header("Nats-Sequence")


def _decoded(message: dict[str, Any]) -> Frame:
    raw = base64.b64decode(message.get("hdrs", "")).decode("utf-8", "replace")
    headers = dict(line.split(":", 1) for line in raw.split("\r\n")[1:] if ":" in line)
    headers = {name.strip(): value.strip() for name, value in headers.items()}
    headers |= {
        "Nats-Sequence": str(message["seq"]),
        "Nats-Subject": message["subject"],
        "Nats-Time-Stamp": message["time"],
    }
    return Frame(message["subject"], "", headers, base64.b64decode(message.get("data", "")))
