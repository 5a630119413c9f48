"""The grammar of subjects and filters, and what they match."""

from __future__ import annotations

import itertools

import pytest

from tidings.errors import ConfigError, InvalidMessage
from tidings.subjects import check_filter, check_group, check_subject, covers, matches, normalise, overlap, token

SUBJECTS = [".".join(tokens) for length in (1, 2, 3, 4) for tokens in itertools.product("ab", repeat=length)]
"""All there are of up to four tokens out of two letters."""
HEADS = [".".join(tokens) for length in (1, 2, 3) for tokens in itertools.product("ab*", repeat=length)]
FILTERS = [*HEADS, *(f"{head}.>" for head in HEADS if len(head) < 5), ">"]
"""All there are of up to three tokens: whatever two of them have in common shows on a subject of up to four."""
MATCHED = {filter: {subject for subject in SUBJECTS if matches(filter, subject)} for filter in FILTERS}
TEXTS = ["".join(c) for length in (0, 1, 2, 3) for c in itertools.product("aA2-.*>% ä\ud800\0", repeat=length)]


@pytest.mark.parametrize("subject", ["a", "events.todo.newitem", "A.b-c_d.1", "events.%C3%A4", "a" * 255, "a.$b"])
def test_a_subject_is_returned_as_it_is(subject: str) -> None:
    """What the grammar allows passes both checks unchanged."""
    assert check_subject(subject) == subject
    assert check_filter(subject) == subject


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        ("", "empty"),
        ("a" * 256, "255 bytes"),
        ("a..b", "empty token"),
        (".a", "empty token"),
        ("a.", "empty token"),
        ("a b", "printable ASCII"),
        ("a,b", "printable ASCII"),
        ("ä", "printable ASCII"),
        ("a\n", "printable ASCII"),
        ("a\x00", "printable ASCII"),
        ("$JS.API", "belong to the broker"),
    ],
)
def test_a_bad_subject_is_refused_with_its_reason(subject: str, why: str) -> None:
    """Both checks refuse what the grammar excludes and say why."""
    with pytest.raises(InvalidMessage, match=why):
        check_subject(subject)
    with pytest.raises(ConfigError, match=why):
        check_filter(subject)


@pytest.mark.parametrize("filter", ["*", ">", "a.*", "*.b.*", "a.>", "*.>"])
def test_wildcards_belong_into_filters(filter: str) -> None:
    """A whole token may be a wildcard in a filter and never in a subject."""
    assert check_filter(filter) == filter
    with pytest.raises(InvalidMessage, match="wildcards belong into filters"):
        check_subject(filter)


@pytest.mark.parametrize("filter", ["a*", "a.b*.c", "a.>b", "a.**"])
def test_a_partial_wildcard_is_refused(filter: str) -> None:
    """A wildcard that is a part of a token would match nothing on some engine, so it raises."""
    with pytest.raises(ConfigError, match="whole token"):
        check_filter(filter)


def test_the_rest_wildcard_stands_at_the_end() -> None:
    """`>` anywhere else raises."""
    with pytest.raises(ConfigError, match="at the end"):
        check_filter("a.>.b")


@pytest.mark.parametrize(
    ("filter", "yes", "no"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "A.b", "b.a"]),
        ("a.*", ["a.b", "a.*"], ["a", "a.b.c"]),
        ("*", ["a"], ["a.b"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
        (">", ["a", "a.b.c"], []),
        ("*.b.>", ["a.b.c"], ["a.b", "a.c.b"]),
    ],
)
def test_a_filter_matches_its_subjects(filter: str, yes: list[str], no: list[str]) -> None:
    """`*` stands for exactly one token and `>` for one or more."""
    assert [subject for subject in yes + no if matches(filter, subject)] == yes


def test_covering_is_matching_everything_the_other_matches() -> None:
    """`covers` agrees with a count over all short subjects, for all pairs of short filters."""
    for wide, narrow in itertools.product(FILTERS, repeat=2):
        assert covers(wide, narrow) == (MATCHED[narrow] <= MATCHED[wide]), (wide, narrow)


def test_overlapping_is_matching_a_subject_in_common() -> None:
    """`overlap` agrees with a search over all short subjects, for all pairs of short filters."""
    for one, other in itertools.product(FILTERS, repeat=2):
        assert overlap(one, other) == bool(MATCHED[one] & MATCHED[other]), (one, other)


def test_normalised_filters_match_the_same() -> None:
    """Leaving out doubles and covered filters changes nothing about what is matched, and leaves none covered."""
    for given in itertools.product(FILTERS[::4], repeat=3):
        kept = normalise(list(given))
        assert set().union(*(MATCHED[f] for f in kept)) == set().union(*(MATCHED[f] for f in given))
        assert not any(covers(a, b) for a, b in itertools.permutations(kept, 2)), given


def test_a_token_is_one_token_and_tells_texts_apart() -> None:
    """Any text, dots, wildcards and half surrogates included, becomes exactly one token of its own."""
    encoded = [token(text) for text in TEXTS]
    assert len(set(encoded)) == len(TEXTS)
    for part in encoded:
        assert matches("users.*", check_subject(f"users.{part}"))


@pytest.mark.parametrize("group", ["save", "A-1_b", "x" * 64])
def test_a_group_name_is_returned_as_it_is(group: str) -> None:
    """Letters, digits, '-' and '_' make a group name."""
    assert check_group(group) == group


@pytest.mark.parametrize("group", ["", "a.b", "a b", "x" * 65, "ä", "a\n"])
def test_a_bad_group_name_is_refused(group: str) -> None:
    """Anything else raises and says what a group name is."""
    with pytest.raises(ConfigError, match="1 to 64"):
        check_group(group)
