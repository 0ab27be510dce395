"""Curves of cost and throughput: which are flat, as tables and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.pictures import pyplot
from bench.probe import Claims
from bench.report import Report

FLAT = 2.0  # the last point costs at most so many times what the first does
SHOWN = ("lock_lanes", "claim", "next_look", "settle", "update_lanes")
MEASURES = ("ms a claim", "pages a claim", "deliveries/s")


@dataclass(frozen=True, slots=True)
class Point:
    """*rates*: deliveries a second, one a round. *depth_ms*: to count the queue's depth."""

    label: str
    claims: Claims
    rates: Sequence[float]
    depth_ms: float

    def values(self) -> tuple[float, float, float]:
        """Return MEASURES."""
        return self.claims.ms, self.claims.pages, median(self.rates)


@dataclass(frozen=True, slots=True)
class Curve:
    """*name* is the option's, *title* says what grows along its *points*."""

    name: str
    title: str
    points: Sequence[Point]

    def growth(self) -> list[float]:
        """Return by which factor each of MEASURES is worse at the last point than at the first."""
        first, last = self.points[0].values(), self.points[-1].values()
        return [last[0] / first[0], last[1] / first[1], first[2] / max(last[2], 0.1)]

    def flat(self) -> bool:
        return all(factor <= FLAT for factor in self.growth())


def add_table(report: Report, curve: Curve) -> None:
    """Add a table of one curve to *report*."""
    heads = [
        curve.title,
        "ms a claim",
        "pages a claim",
        "rows a claim",
        "deliveries/s",
        *[f"{name}, pages a call" for name in SHOWN],
        "measure_depth, ms",
    ]
    rows = []
    for point in curve.points:
        claims, rates = point.claims, point.rates
        spread = f" [{min(rates):,.0f} to {max(rates):,.0f}]" if len(rates) > 1 else ""
        pages = [
            f"{claims.by_statement[name]:,.0f}" if name in claims.by_statement else "-"
            for name in SHOWN
        ]
        cells = [
            f"{claims.ms:.1f}",
            f"{claims.pages:,.0f}",
            f"{claims.rows:.0f}",
            f"{median(rates):,.0f}{spread}",
            *pages,
        ]
        rows.append([point.label, *cells, f"{point.depth_ms:,.0f}"])
    report.table(heads, rows)


def add_verdicts(report: Report, curves: Sequence[Curve]) -> None:
    """Add the verdict on each curve."""
    rows = []
    for curve in curves:
        rows.append(
            [
                curve.title,
                *[f"{factor:.2f}" for factor in curve.growth()],
                "flat" if curve.flat() else "NOT FLAT",
            ]
        )
    heads = ["curve", *[f"{name}, times worse" for name in MEASURES], f"at most {FLAT:g}"]
    report.table(heads, rows, title="The last point beside the first")


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw the curves into a PNG."""
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    figure, axes = pyplot().subplots(
        lines, columns, figsize=(4.2 * columns, 3.4 * lines), squeeze=False
    )
    for place, curve in zip(axes.flat, curves, strict=False):
        labels = [point.label for point in curve.points]
        place.plot(labels, [point.claims.pages for point in curve.points], "o-", color="tab:blue")
        place.set_ylim(bottom=0)
        place.set_ylabel("pages a claim", color="tab:blue")
        place.set_title(_wrapped(curve.title), fontsize=9)
        other = place.twinx()
        other.plot(labels, [median(point.rates) for point in curve.points], "s--", color="tab:red")
        other.set_ylim(bottom=0)
        other.set_ylabel("deliveries/s", color="tab:red")
    for place in axes.flat[len(curves) :]:
        place.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _wrapped(title: str, width: int = 44) -> str:
    words, lines = title.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
