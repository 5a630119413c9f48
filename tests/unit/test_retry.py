"""Retry policies."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.errors import ConfigError, InvalidMessage, MissingExtra, PublishInTransaction, TooLarge
from tidings.retry import NEVER, Reject, RetryLater, RetryPolicy


def highest(low: float, high: float) -> float:
    """The jitter that draws the upper bound."""
    return high


def test_the_default_is_eight_attempts_from_a_second_to_five_minutes() -> None:
    """The bounds double from 1 s and end after seven retries."""
    bounds = [RetryPolicy().delay(failed, highest) for failed in range(1, 9)]
    assert bounds == [1, 2, 4, 8, 16, 32, 64, None]
    assert RetryPolicy(attempts=99).delay(50, highest) == 300


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_delay_lies_between_zero_and_its_bound(attempts: int, failed: int, first: float, more: float) -> None:
    """Full jitter: any delay from nothing to the bound, which never passes `most`; none after the last attempt."""
    policy = RetryPolicy(attempts=attempts, first=first, most=first + more)
    delay = policy.delay(failed)
    assert (delay is None) == (failed >= attempts)
    assert delay is None or 0 <= delay <= policy.most


def test_the_jitter_spreads_over_the_whole_range() -> None:
    """Delays are drawn, not fixed: else all retries of an outage come at once."""
    drawn = {RetryPolicy(first=100).delay(1) for _ in range(50)}
    assert len(drawn) == 50


def test_the_closest_base_class_decides() -> None:
    """A policy for `LookupError` holds for `KeyError` unless that has one of its own."""
    broad, narrow = RetryPolicy(attempts=2), RetryPolicy(attempts=3)
    policy = RetryPolicy(per={Exception: NEVER, LookupError: broad, KeyError: narrow})
    assert policy.applied_to(KeyError()) is narrow
    assert policy.applied_to(IndexError()) is broad
    assert policy.applied_to(OSError()) is NEVER
    assert RetryPolicy(per={KeyError: narrow}).applied_to(OSError()) == RetryPolicy(per={KeyError: narrow})


def test_never_means_the_first_failure_is_the_last() -> None:
    """`NEVER` gives no delay at all."""
    assert NEVER.delay(1) is None


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"first": -1.0},
        {"first": 10.0, "most": 1.0},
        {"first": math.nan},
        {"most": math.nan},
        {"most": math.inf},
    ],
)
def test_a_policy_that_cannot_work_is_refused(options: dict[str, float]) -> None:
    """No attempts, backward bounds, NaN and waiting for ever are mistakes of the program."""
    with pytest.raises(ConfigError, match="attempts"):
        RetryPolicy(**options)  # type: ignore[arg-type]


def test_a_policy_is_read_from_a_setting() -> None:
    """All three values, any of them left out, spaces allowed."""
    assert RetryPolicy.parse("attempts=3, first=0.1,most=1") == RetryPolicy(attempts=3, first=0.1, most=1)
    assert RetryPolicy.parse("attempts=2") == RetryPolicy(attempts=2)
    assert RetryPolicy.parse("") == RetryPolicy()
    assert RetryPolicy.parse("first=400").most == 400


@pytest.mark.parametrize("text", ["3", "attempts", "attempts=x", "attempts=1.5", "tries=3", "first=nan", "attempts=0"])
def test_a_setting_that_says_nothing_is_refused(text: str) -> None:
    """The error is a `ConfigError`, never a bare `ValueError`."""
    with pytest.raises(ConfigError):
        RetryPolicy.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": "3"}, {"first": "1s"}, {"per": {ValueError: 1}}, {"per": {"ValueError": NEVER}}],
)
def test_a_policy_of_other_types_is_refused(wrong: dict[str, Any]) -> None:
    """It would fail, or say nothing, with the first message that does."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


@pytest.mark.parametrize("after", [timedelta(seconds=5), "5s", -1, math.inf, math.nan])
def test_later_is_a_number_of_seconds(after: Any) -> None:
    """Anything else is the handler's error where it stands, and not one of the worker afterwards."""
    with pytest.raises(ConfigError, match="write seconds"):
        RetryLater(after=after)


def test_outcomes_carry_their_words() -> None:
    """`RetryLater` knows when, `Reject` knows why."""
    assert RetryLater(after=3).after == 3
    assert "later" in str(RetryLater())
    assert str(Reject("no such user")) == "no such user"


@pytest.mark.parametrize("error", [ConfigError("x"), MissingExtra("x", "y"), TooLarge(2, 1), PublishInTransaction()])
def test_what_only_a_change_of_the_program_mends_is_not_tried_again(error: Exception) -> None:
    """Errors by which Tidings refuses what the program wants, whatever a policy says of errors in general."""
    assert RetryPolicy(per={Exception: RetryPolicy(attempts=9)}).applied_to(error) is NEVER


def test_a_policy_that_names_them_has_its_way() -> None:
    """Who says otherwise of such an error, or of a base class of it among them, means it."""
    often = RetryPolicy(attempts=9)
    policy = RetryPolicy(per={ConfigError: often, TooLarge: often})
    assert [policy.applied_to(error) for error in (MissingExtra("x", "y"), TooLarge(2, 1))] == [often, often]
    assert policy.applied_to(InvalidMessage("x")) is NEVER
    assert policy.applied_to(ValueError("x")) is policy
