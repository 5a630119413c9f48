"""What the cases have shown, engine by engine, as a table and a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

PROPERTY = "conformance"
LAYERS = ("seam", "bus")


class Tally:
    """What became of each case on each engine."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str, str], str] = {}

    def note(self, report: pytest.TestReport) -> None:
        """Take in one report; of the several that a test has (set up, run, tear down) the worst one counts."""
        ran = dict(report.user_properties).get(PROPERTY)
        if isinstance(ran, tuple):
            engine, layer, name = ran
            if self._outcomes.get((engine, layer, name)) in (None, "passed"):
                self._outcomes[engine, layer, name] = report.outcome

    def lines(self) -> Iterator[str]:
        """Nothing when no case ran."""
        if not self._outcomes:
            return
        engines = sorted({engine for engine, _, _ in self._outcomes}, key=lambda name: (name != "memory", name))
        cases = {(layer, name) for _, layer, name in self._outcomes}
        yield f"{'engine':10} {'seam':>6} {'bus':>6} {'failed':>8} {'skipped':>8}   without: need a server or a wire"
        for engine in engines:
            passed, others = Counter[str](), Counter[str]()
            for (ran_on, layer, _), outcome in self._outcomes.items():
                if ran_on == engine:
                    (passed if outcome == "passed" else others)[layer if outcome == "passed" else outcome] += 1
            without = len(cases) - passed.total() - others.total()
            counts = " ".join(f"{passed[layer]:6}" for layer in LAYERS)
            yield f"{engine:10} {counts} {others['failed']:8} {others['skipped']:8}   {without or ''}".rstrip()
        outcomes = Counter(self._outcomes.values())
        failed = f", {outcomes['failed']} failed" if outcomes["failed"] else ""
        yield f"conformance: {len(cases)} cases x {len(engines)} engines, {outcomes['skipped']} skipped{failed}"
