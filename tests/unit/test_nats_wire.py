"""What the NATS engine puts on the wire and reads from it."""

from __future__ import annotations

import gc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.engine import Claim, Delivery, Done, Entry, Failure, Outgoing, Skip
from tidings.engines.nats.api import ApiError, read_ack
from tidings.engines.nats.connection import Address, Frame
from tidings.engines.nats.headers import ORIGIN, Block
from tidings.engines.nats.layout import Held, Layout, Shape, shape_of
from tidings.engines.nats.read import _common
from tidings.engines.nats.wire import (
    FAR,
    MAX_HEADERS,
    Origin,
    Token,
    checked,
    clean,
    copied,
    death_of,
    origin_of,
    original,
    rfc3339,
    seconds,
    shortened,
    source,
)
from tidings.errors import ConfigError, EngineUnavailable, InvalidMessage, StoreFull, TooLarge
from tidings.subjects import covers

LAYOUT = Layout("todo", ("events.>",))


def test_deliveries_are_nothing_to_the_garbage_collector() -> None:
    """What waits here or is in hand is not gone through at each collection: a worker with much to do would spend a
    tenth of its time on that."""
    entry = Entry(7, "events.a", 1.0, clean(Block(b"NATS/1.0\r\nce-id: 1\r\n\r\n")), b"{}")
    assert entry.headers["ce-id"] == "1"
    delivery = Delivery(entry, "g", 1, 0, 0.0, Token("reply", 0))
    for value in (entry.headers, entry, delivery.token, delivery, Done(delivery)):
        assert not gc.is_tracked(value)


@pytest.mark.parametrize(
    "reply", ["$JS.ACK.s.g.3.17.5.1700000000500000000.9", "$JS.ACK.hub.AB12.s.g.3.17.5.1700000000500000000.9.x"]
)
def test_acknowledgement_subject(reply: str) -> None:
    """Both forms of the acknowledgement subject are understood: without a domain and with one."""
    came = source(reply)
    assert (came.stream, came.deliveries, came.position, came.time) == ("s", 3, 17, 1_700_000_000.5)


def test_foreign_headers_are_taken_as_they_are() -> None:
    """Lists, odd names and non-ASCII values arrive; what means something to the server or to us does not."""
    found = clean(
        {"ce-id": ["1"], "häuser": "äöü", "Nats-Rollup": "all", "nats-ttl": "1s", ORIGIN: "{}", "many": ["a", "b"]}
    )
    assert found == {"ce-id": "1", "häuser": "äöü", "many": "a, b"}
    assert clean(None) == {}


@pytest.mark.parametrize(
    ("headers", "id"),
    [
        ({"a b": "x"}, "1"),
        ({"": "x"}, "1"),
        ({"Nats-Rollup": "all"}, "1"),
        ({"nats-ttl": "1s"}, "1"),
        ({"a": "line\r\nNats-Rollup: all"}, "1"),
        ({"a": "ä"}, "1"),
        ({"a": " blank"}, "1"),
        ({"a": "x" * MAX_HEADERS}, "1"),
        ({}, "one\ntwo"),
    ],
)
def test_bad_headers_are_refused(headers: dict[str, str], id: str) -> None:
    """What would not arrive as it is, or would mean something to the server, is refused before the wire."""
    with pytest.raises(InvalidMessage):
        checked(Outgoing("events.a", b"{}", headers, id), 1_000_000)


def test_size_counts_headers_and_subject() -> None:
    """The limit holds for body, headers and subject together, to the byte."""
    checked(Outgoing("events.a", b"x" * 85, {"abc": ""}, "1"), 100)
    with pytest.raises(TooLarge):
        checked(Outgoing("events.a", b"x" * 86, {"abc": ""}, "1"), 100)


@pytest.mark.parametrize("when", [FAR, float("inf"), float("nan")])
def test_far_future_is_refused(when: float) -> None:
    """A time beyond the server's arithmetic would fire at once, and is refused."""
    with pytest.raises(InvalidMessage):
        checked(Outgoing("events.a", b"", {}, "1", when), 1000)


@given(st.floats(0, FAR))
def test_times_survive(moment: float) -> None:
    """A time written for the server reads back as the same microsecond."""
    assert abs(seconds(rfc3339(moment)) - moment) < 2e-6


@given(st.builds(Failure, st.text(), st.text(), st.text(), st.text(), st.text(), st.text()))
def test_any_failure_fits_a_header(failure: Failure) -> None:
    """Whatever an exception says, the dead letter's header is printable ASCII of bounded size and reads back."""
    delivery = Delivery(Entry(7, "events.a", 1.0, {}, b"body"), "g", 1, 0, 0.0, Token("", 3))
    _, headers = copied(delivery.entry, death_of(delivery, "handler_error", 1, failure, 2.0), 1_000_000)
    text = headers[ORIGIN]
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 16 * 1024
    death = origin_of(Frame("", "", headers, b"")).death
    assert death is not None
    assert death.inbox == 3
    assert failure.error.startswith(death.failure.error)


def test_long_failures_keep_their_end() -> None:
    """A traceback too long for a header loses its beginning; where it ended stays."""
    failure = Failure("ValueError", "m" * 5000, "frame\n" * 10_000 + "the culprit", "h" * 9000, "x" * 9000, "v" * 9000)
    short = shortened(failure)
    assert short.traceback.endswith("the culprit")
    assert len(msgspec.json.encode(short)) < 16 * 1024


def test_entries_travel_whole() -> None:
    """An entry copied into an inbox or dead letter comes out with all its headers, also those that cannot be sent."""
    entry = Entry(7, "events.a", 12.5, {"ce-id": "1", "odd name": "x", "umlaut": "ä", "blank": " x"}, b"\x00\xff")
    body, headers = copied(entry, Origin(entry.subject, entry.time), 1_000_000)
    assert set(headers) == {"ce-id", ORIGIN}
    assert original(7, origin_of(Frame("", "", headers, body)), headers, body) == entry


@pytest.mark.parametrize(
    "entry",
    [
        Entry(7, "events.a", 1.0, {"big": "x" * 60_000}, b""),
        Entry(7, "events.a", 1.0, {"odd name": "ä" * 12_000}, b""),
        Entry(7, "events.a", 1.0, {}, b"x" * 999_999),
    ],
    ids=["headers", "odd headers", "body"],
)
def test_what_is_too_large_travels_as_a_reference(entry: Entry) -> None:
    """An entry that would not fit with our own header is named by its position only."""
    body, headers = copied(entry, Origin(entry.subject, entry.time), 1_000_000)
    assert body == b""
    assert origin_of(Frame("", "", headers, body)).reference


@pytest.mark.parametrize(
    ("body", "status", "raised"),
    [
        (b"", "", EngineUnavailable),
        (b"+OK", "", EngineUnavailable),
        (b'{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}', "", StoreFull),
        (b'{"error":{"code":500,"err_code":10023,"description":"insufficient resources"}}', "", StoreFull),
        (b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"}}', "", ApiError),
        (b'{"error":{"code":400,"err_code":10097,"description":"header size exceeds"}}', "", InvalidMessage),
    ],
)
def test_answers_to_a_publish(body: bytes, status: str, raised: type[Exception]) -> None:
    """Nothing but a real acknowledgement counts as stored; an empty answer least of all."""
    with pytest.raises(raised):
        read_ack(Frame("", "", {"Status": status} if status else None, body))


@pytest.mark.parametrize(
    "frame",
    [
        Frame("", "", {"Status": "503"}, b""),
        Frame("", "", None, b'{"error":{"code":503,"err_code":10008,"description":"system temporarily unavailable"}}'),
    ],
)
def test_a_missing_leader_is_no_answer(frame: Frame) -> None:
    """While a leader is being elected the publisher is told to try again."""
    assert read_ack(frame) is None


def shape(*held: Held) -> Shape:
    return Shape("g", held, 30.0, 1)


def test_verdicts() -> None:
    """A delivery is handed out, passed over, or undecided while its claim is still being copied."""
    old = Held(Claim("events.a", 5, (Skip("events.a", 7, 8),)), 1)
    added = Held(Claim("events.*"), 20)
    pending = Held(Claim("events.b.>"), None, False)
    group = shape(old, added, pending)
    assert [group.verdict("events.a", n) for n in (4, 5, 7, 8, 9, 20)] == [False, True, False, False, True, True]
    assert [group.verdict("events.c", n) for n in (19, 20)] == [False, True]
    assert group.verdict("events.b.x", 100) is None
    assert group.verdict("events.d.x", 100) is False


def test_shapes_live_in_metadata() -> None:
    """What a group claims is read back from its consumer's configuration; a foreign consumer is told apart."""
    group = shape(Held(Claim("events.a", 5, (Skip("events.a", 7, 8),)), 1), Held(Claim("events.b"), None, False))
    assert shape_of({"config": LAYOUT.group_config(group)}) == group
    assert shape_of({"config": {"metadata": {"other": "x"}}}) is None
    assert shape_of({"config": {}}) is None


def test_consumers_get_no_overlapping_filters() -> None:
    """Overlapping filters, which the server refuses, are reduced to the wider ones."""
    config = LAYOUT.group_config(shape(Held(Claim("events.a.b"), 1), Held(Claim("events.a.*"), 1)))
    assert config["filter_subjects"] == ["events.a.*"]


@pytest.mark.parametrize("roots", [(), (">",), ("*.x",), ("_t.x.>",), ("_INBOX.>",), ("$JS.>",), ("a..b",)])
def test_bad_roots_are_refused(roots: tuple[str, ...]) -> None:
    """Roots that would catch what is not the namespace's own are refused by name."""
    with pytest.raises(ConfigError):
        Layout("todo", roots)


@pytest.mark.parametrize("namespace", ["", "a.b", "a b", "x" * 33, "ä"])
def test_bad_namespaces_are_refused(namespace: str) -> None:
    """A namespace is one plain token."""
    with pytest.raises(ConfigError):
        Layout(namespace, ("events.>",))


@given(
    st.lists(
        st.sampled_from(["events.a", "events.a.b", "events.a.>", "events.*.b", "events.b.*", "other.x"]), min_size=2
    )
)
def test_common_filter_covers_all(filters: list[str]) -> None:
    """The one filter that several are read through covers each of them."""
    assert all(covers(_common(filters), filter) for filter in filters)


def test_passwords_are_not_shown() -> None:
    """An address prints without its password."""
    assert "secret" not in repr(Address(("nats://h:1",), "u", "secret"))
