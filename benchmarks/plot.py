"""The figures as bars, in an SVG that is readable on light and on dark ground."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from benchmarks.metrics import METRICS
from benchmarks.peers import PEERS, Leg
from benchmarks.report import Report, number, title

SHOWN = ("login", "down", "up", "noop", "idle-many", "poured-p99", "resume")
"""The figures that the plot shows."""

COLUMNS = {Leg.PLAIN: "without TLS", Leg.TLS: "TLS to the client"}
REFERENCE = "nginx"

LONGEST = 3.0
"""Times the reference: longer bars are cut off there."""

MARGIN, NAME, BAR, LABEL = 16, 168, 200, 128  # pixels, from left to right
COLUMN = NAME + BAR + LABEL
ROW, HEAD, GAP = 18, 24, 14  # pixels, from top to bottom
TOP = 64

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.big { font-size: 15px; font-weight: 600; }
.name { text-anchor: end; }
.bar { fill: #8c959f; }
.own { fill: #0969da; }
.line { stroke: #24292f; stroke-dasharray: 2 3; opacity: 0.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .bar { fill: #6e7681; }
  .own { fill: #4493f8; }
  .line { stroke: #e6edf3; }
}
"""


def as_svg(report: Report) -> str:
    """Return the plot: a panel for each figure, a column for each leg."""
    panels: list[str] = []
    bottom = TOP
    for metric in SHOWN:
        heights = []
        for column, leg in enumerate(COLUMNS):
            bars = _bars(report, metric, leg)
            if bars:
                left = MARGIN + column * (COLUMN + MARGIN)
                panels += _panel(report, metric, left, bottom, bars)
                heights.append(HEAD + ROW * len(bars) + GAP)
        bottom += max(heights, default=0)
    width = MARGIN + len(COLUMNS) * (COLUMN + MARGIN)
    heads = [
        _text(MARGIN + column * (COLUMN + MARGIN), 48, text, "big")
        for column, text in enumerate(COLUMNS.values())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" role="img">',
            "<title>What a proxy costs, shorter is better</title>",
            f"<style>{STYLE}</style>",
            _text(MARGIN, 22, f"Cost in proportion to {PEERS[REFERENCE].title}; shorter is better", "big"),
            *heads,
            *panels,
            "</svg>\n",
        ]
    )


def _bars(report: Report, metric: str, leg: Leg) -> list[tuple[str, float]]:
    """Return who has measured the figure, and how much it is."""
    medians = ((name, report.results.median(metric, leg, name)) for name in PEERS)
    return [(name, median) for name, median in medians if median is not None]


def _panel(report: Report, metric: str, left: int, top: int, bars: list[tuple[str, float]]) -> Iterator[str]:
    # Where the reference was not measured, the longest bar is the whole.
    reference = dict(bars).get(REFERENCE)
    whole = reference * LONGEST if reference else max(value for _, value in bars) or 1.0
    start = left + NAME
    mark = start + BAR / LONGEST if reference else start
    yield _text(left, top + 14, title(metric, report.sizes), "title")
    if reference:
        yield f'<path class="line" d="M{mark:g},{top + HEAD - 2} v{ROW * len(bars)}"/>'
    for row, (name, value) in enumerate(bars):
        y = top + HEAD + row * ROW
        kind = "own" if name == "mailroute" else "bar"
        yield _text(start - 6, y + 12, PEERS[name].title, "name")
        end = start + BAR * min(value / whole, 1.0)
        if value > whole:
            # A gap near the end: the bar goes on.
            yield _rectangle(kind, start, y + 2, end - 10)
            yield _rectangle(kind, end - 6, y + 2, end)
        else:
            yield _rectangle(kind, start, y + 2, end)
        yield _text(max(end, mark) + 6, y + 12, _label(metric, value, reference))


def _rectangle(kind: str, left: float, top: float, right: float) -> str:
    return f'<rect class="{kind}" x="{left:g}" y="{top}" width="{right - left:.1f}" height="{ROW - 5}"/>'


def _label(metric: str, value: float, reference: float | None) -> str:
    kind = METRICS[metric]
    shown = f"{number(value * kind.scale)} {kind.unit}"
    return f"{value / reference:.2f} ({shown})" if reference else shown


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.4g}" y="{y}">{escape(text)}</text>'
