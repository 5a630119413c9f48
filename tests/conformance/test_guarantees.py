"""The page of promises: it names cases that exist, and is up to date."""

from __future__ import annotations

from pathlib import Path

from tidings.conformance import cases
from tidings.conformance.guarantees import guarantees
from tidings.conformance.promises import PROMISES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guarantees.md"


def test_every_promise_names_cases() -> None:
    """Each promise is proved by cases, and each case it names exists in one layer only."""
    names = [case.name for layer in ("seam", "bus") for case in cases(layer)]
    assert len(names) == len(set(names))
    for promise in PROMISES:
        assert promise.cases, promise.title
        assert set(promise.cases) - set(names) == set(), promise.title


def test_every_case_proves_a_promise() -> None:
    """No case stands beside the table: each is named by at least one promise, and by none twice."""
    named = {name for promise in PROMISES for name in promise.cases}
    assert {case.name for layer in ("seam", "bus") for case in cases(layer)} - named == set()
    assert all(len(promise.cases) == len(set(promise.cases)) for promise in PROMISES)


def test_there_are_enough_cases() -> None:
    """At least ninety cases hold an engine to the promises, in two layers, some of them with real faults."""
    assert len(cases("seam")) + len(cases("bus")) >= 90
    assert len(cases("seam", wired=False)) < len(cases("seam"))
    assert len(cases("bus", wired=False)) < len(cases("bus"))


def test_the_page_is_up_to_date() -> None:
    """`docs/guarantees.md` is what the cases say now; if not: `python -m tidings.conformance > docs/guarantees.md`."""
    assert PAGE.read_text() == guarantees()
