"""A bar chart with whiskers from least to most, as SVG that is readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from textwrap import wrap

from .benchmark import Benchmark, Measured
from .report import number

WIDTH, LABEL, ROW = 1000, 370, 24
BARS = WIDTH - LABEL - 190
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.head { font-size: 17px; font-weight: 600 } .note { font-size: 12px; fill: #59636e }
.ours { fill: #1a7f64 } .bare { fill: #7d8590 } .peer { fill: #4f7cc4 }
.line { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9198a1 } .line { stroke: #e6edf3 }
}
"""


def chart(benchmark: Benchmark, measured: Sequence[Measured], note: str) -> str:
    """The first metric of the benchmark, one bar per case; `note` says where and when it was measured."""
    metric = benchmark.metrics[0]
    better = "more is better" if metric.more_is_better else "less is better"
    notes = [*wrap(benchmark.conditions, 150), *wrap(f"Bar: median; line: least to most of the rounds. {note}", 150)]
    spreads = [(one, spread) for one in measured if (spread := one.spread(metric.key))]
    most = max((spread[2] for _, spread in spreads), default=1.0)
    top = 62
    parts = [
        _text(12, 28, f"{benchmark.title}: {metric.title}, {metric.unit} ({better})", "head"),
        _text(12, 48, "green: Tidings · grey: bare client or nothing · blue: other frameworks", "note"),
    ]
    for row, (one, spread) in enumerate(spreads):
        parts += _bar(top + row * ROW, one, spread, BARS / most)
    bottom = top + len(spreads) * ROW + 22
    parts += [_text(12, bottom + line * 16, words, "note") for line, words in enumerate(notes)]
    height = bottom + len(notes) * 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>{escape(benchmark.title)}</title><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(y: int, one: Measured, spread: tuple[float, float, float], scale: float) -> list[str]:
    median, least, most = (value * scale for value in spread)
    middle = y + ROW // 2
    line = f'<line class="line" x1="{LABEL + least:.1f}" y1="{middle}" x2="{LABEL + most:.1f}" y2="{middle}"/>'
    return [
        _text(LABEL - 8, middle + 4, one.case.title, "", end=True),
        f'<rect class="{_kind(one)}" x="{LABEL}" y="{y + 4}" width="{median:.1f}" height="{ROW - 8}" rx="2"/>',
        line,
        _text(LABEL + round(max(median, most)) + 8, middle + 4, _figures(spread), "note"),
    ]


def _figures(spread: tuple[float, float, float]) -> str:
    median, least, most = map(number, spread)
    return f"{median} ({least}–{most})"


def _kind(one: Measured) -> str:
    if one.case.contender == "tidings":
        return "ours"
    return "bare" if one.case.contender.startswith(("nats", "python", "click")) else "peer"


def _text(x: int, y: int, words: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x}" y="{y}"{anchor}>{escape(words)}</text>'
