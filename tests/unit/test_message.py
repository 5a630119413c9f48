"""Messages: headers, identity, causes and ids."""

from __future__ import annotations

import concurrent.futures
import os
import time
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.engine import Entry
from tidings.message import (
    CAUSATION,
    CORRELATION,
    ID,
    KEY,
    TRACEPARENT,
    TYPE,
    Message,
    born,
    compose,
    decode_header,
    encode_header,
    follow_up_id,
    header_size,
    identity,
    new_id,
    place_of,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))


def entry(headers: dict[str, str] | None = None, *, position: int = 7, subject: str = "events.x") -> Entry:
    return Entry(position, subject, 1_700_000_000.5, headers or {}, b"{}")


def message(
    headers: dict[str, str] | None = None, *, id: str = "m1", group: str = "g", subject: str = "events.x"
) -> Any:
    return Message(entry(headers, subject=subject), None, id=id, group=group)


def written(**more: Any) -> dict[str, str]:
    options = {"id": "i", "ce_type": "events.x", "source": "todo", "now": 0.0, **more}
    return compose("events.x", b"{}", **options).headers


@given(texts)
def test_any_text_survives_as_a_header(text: str) -> None:
    """Encoded text is printable ASCII without spaces and comes back exactly."""
    sent = encode_header(text)
    assert sent.isascii()
    assert sent == "" or sent.isprintable()
    assert " " not in sent
    assert '"' not in sent
    assert decode_header(sent) == text


@given(st.text())
def test_a_foreign_header_never_breaks_the_reader(value: str) -> None:
    """Stray percent signs and anything else give some text, and no error."""
    assert isinstance(decode_header(value), str)


def test_stray_percent_signs_stay() -> None:
    """A foreign tool that does not encode is taken at its word."""
    assert decode_header("100% sure") == "100% sure"
    assert decode_header("%zz") == "%zz"


@given(texts.filter(bool), texts.filter(bool), texts.filter(bool))
def test_what_is_composed_is_read_again(id: str, source: str, key: str) -> None:
    """Id, source and key come back from the wire as they were given, whatever letters they have."""
    headers = compose("events.x", b"{}", id=id, ce_type="events.x", source=source, now=1.0, key=key).headers
    assert identity(entry(headers), "ns") == id
    got = message(headers, id=id)
    assert (got.source, got.key, got.correlation_id, got.causation_id) == (source, key, id, None)


def test_the_attributes_are_those_of_cloudevents() -> None:
    """Binary mode of CloudEvents 1.0, with an RFC 3339 time in UTC."""
    assert written(now=1_700_000_000.25) == {
        "ce-id": "i",
        "ce-type": "events.x",
        "ce-source": "todo",
        "ce-time": "2023-11-14T22:13:20.250000Z",
        "ce-specversion": "1.0",
        "ce-correlationid": "i",
    }


def test_a_type_with_percent_signs_comes_back() -> None:
    """A subject made by `token()` has percent signs; its type reads as the same subject."""
    headers = written(ce_type="events.user.a%40b")
    assert message(headers).header(TYPE) == "events.user.a%40b"


def test_a_foreign_message_is_known_by_its_place() -> None:
    """Without an id, namespace, position and time make one that is the same for everybody, and not for another log."""
    first = msgspec.structs.replace(entry({}), time=1763854382.1234564)
    assert identity(first, "prod") == "prod-7-1763854382123"
    assert identity(msgspec.structs.replace(first, headers={ID: ""}), "prod") == "prod-7-1763854382123"
    assert identity(msgspec.structs.replace(first, time=1763854399.0), "prod") == "prod-7-1763854399000"
    assert (place_of("prod-7-1763854382123", "prod"), place_of("a-b-3-1", "a-b")) == (7, 3)
    assert not any(place_of(id, "prod") for id in ("prod-7", "other-7-1", "prod-x-1", "prod-7-", new_id(), ""))
    foreign = Message(entry({}), None, id="prod-7")
    assert (foreign.correlation_id, foreign.causation_id, foreign.source, foreign.key) == ("prod-7", None, None, None)


def test_a_cause_is_passed_on() -> None:
    """Correlation is that of the chain's first message, causation the id of the direct cause; traces go on."""
    first = message({CORRELATION: "chain", TRACEPARENT: "00-a-b-01"}, id="first")
    headers = written(cause=first)
    assert headers[CORRELATION] == "chain"
    assert headers[CAUSATION] == "first"
    assert headers[TRACEPARENT] == "00-a-b-01"
    assert written(cause=message(id="foreign"))[CORRELATION] == "foreign"


def test_no_key_is_no_header() -> None:
    """A message without a key does not carry an empty one."""
    assert KEY not in written()


def test_headers_are_shown_as_text() -> None:
    """`headers` and `header()` decode, and a missing one is None."""
    got = message({"x-name": "J%C3%BCrgen", "plain": "1"})
    assert got.headers == {"x-name": "Jürgen", "plain": "1"}
    assert got.header("x-name") == "Jürgen"
    assert got.header("nothing") is None


def test_the_time_is_aware() -> None:
    """`message.time` has a time zone, so that it compares with other aware times."""
    assert message().time.isoformat() == "2023-11-14T22:13:20.500000+00:00"


@given(
    st.lists(st.tuples(texts, texts, st.sampled_from(["a", "b", "ab"]), st.integers(0, 99)), unique=True, max_size=8)
)
def test_follow_up_ids_are_distinct(causes: list[tuple[str, str, str, int]]) -> None:
    """Cause, its subject, group and place each make another id; newlines in foreign ids confuse nothing."""
    subjects = [f"events.{abs(hash(subject))}" for subject, *_ in causes]
    keys = {(subject, id, group, index) for subject, (_, id, group, index) in zip(subjects, causes, strict=True)}
    ids = {follow_up_id(message(id=id, group=group, subject=subject), index) for subject, id, group, index in keys}
    assert len(ids) == len(keys)


def test_follow_up_ids_are_stable() -> None:
    """A rerun, also by another version, publishes under the same ids: this one may never change."""
    assert follow_up_id(message(id="m1", group="g"), 0) == follow_up_id(message({"x": "1"}, id="m1", group="g"), 0)
    assert follow_up_id(message(id="m1", group="g"), 0) == "5e6360d9-c751-5131-bea5-e238ab163a9a"


def test_ids_are_uuid_7_and_rise() -> None:
    """Ids of one process sort in the order in which they were made, however fast."""
    ids = [new_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    parsed = [uuid.UUID(id) for id in (ids[0], ids[-1])]
    assert [u.version for u in parsed] == [7, 7]
    assert [u.variant for u in parsed] == [uuid.RFC_4122, uuid.RFC_4122]


def test_ids_made_in_many_threads_are_distinct() -> None:
    """Threads that publish at once never share an id, and each sees its own ids rise."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: [new_id() for _ in range(2000)], range(8)))
    assert all(ids == sorted(ids) for ids in made)
    assert len({id for ids in made for id in ids}) == 16_000


def test_a_clock_that_jumps_back_makes_no_lower_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids go on rising after the wall clock was set back."""
    before = new_id()
    monkeypatch.setattr("tidings.message.time.time_ns", lambda: 1_000_000_000)
    assert before < new_id() < new_id()


def test_a_forked_child_makes_ids_of_its_own() -> None:
    """After a fork no lock of the parent is waited for, and parent and child never make the same id."""
    with new_id._lock:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, new_id().encode())
            os._exit(0)
    os.close(write)
    made = os.read(read, 100).decode()
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0
    assert uuid.UUID(made).version == 7
    assert made != new_id()


def test_the_size_of_headers_is_that_on_the_wire() -> None:
    """`NATS/1.0`, line ends and the empty line count."""
    wire = b"NATS/1.0\r\n" + b"a: 1\r\n" + b"bb: 22\r\n" + b"\r\n"
    assert header_size({"a": "1", "bb": "22"}) == len(wire)


def test_the_repr_shows_no_payload() -> None:
    """A message in a log line does not print what users wrote."""
    assert repr(message()) == "<Message m1 on events.x>"


def test_our_ids_say_when_they_were_made() -> None:
    """To the millisecond; every other id says nothing, whatever it is."""
    before = time.time()
    assert before - 0.002 <= born(new_id()) <= time.time() + 0.002
    for other in ("", "x", "tidings-17", str(uuid.uuid4()), "0" * 32, "é" * 36):
        assert born(other) == 0.0
