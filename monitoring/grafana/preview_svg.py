"""Graphs, dials and pies of the preview, as SVG."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from monitoring.grafana.asking import Frame, Window
from monitoring.grafana.panels import Json
from monitoring.grafana.preview_style import COLOURS, PALETTE, Style, write


def draw_gauge(style: Style, value: Any, height: int) -> str:
    text, colour = style.show("", value)
    options = style.of("")
    share = min(1.0, float(value or 0) / options["max"])
    steps = [
        step["value"] / options["max"] if step["value"] else 0
        for step in options["thresholds"]["steps"]
    ] + [1.0]
    arcs = [_arc(0, 1, 60, 16, "#22252b"), _arc(0, share, 60, 16, colour)] + [
        _arc(low, high, 72, 4, COLOURS[step["color"]])
        for low, high, step in zip(steps, steps[1:], options["thresholds"]["steps"], strict=False)
    ]
    place = f'x="100" y="92" text-anchor="middle" font-size="30" fill="{colour}"'
    number = f"<text {place}>{escape(text)}</text>"
    return (
        f'<svg viewBox="0 0 200 115" width="100%" height="{height}">{"".join(arcs)}{number}</svg>'
    )


def _arc(
    low: float, high: float, radius: float, width: float, colour: str, *, turn: float = math.pi
) -> str:
    """Return a piece of an arc, from *low* to *high* (0 to 1). *turn* is the whole arc's angle."""
    ends = [
        (100 - radius * math.cos(turn * at), 90 - radius * math.sin(turn * at))
        for at in (low, min(high, low + 0.9999))
    ]
    large = int((high - low) * turn > math.pi)
    (x, y), (to_x, to_y) = ends
    path = f"M{x:.2f} {y:.2f}A{radius} {radius} 0 {large} 1 {to_x:.2f} {to_y:.2f}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def draw_pie(style: Style, named: list[tuple[str, str, Any]], height: int) -> str:
    total, at, arcs, legend = sum(value for *_, value in named), 0.0, [], []
    for name, _, value in named:
        colour = style.colour(style.of(name), value)
        arcs.append(_arc(at, at + value / total, 50, 30, colour, turn=2 * math.pi))
        share = f"{value} ({100 * value / total:.0f}%)"
        legend.append(
            f'<div><span style="color:{colour}">&#9632;</span> {escape(name)} {share}</div>'
        )
        at += value / total
    donut = f'<svg viewBox="25 15 150 150" height="{height}" width="55%">{"".join(arcs)}</svg>'
    return f'<div style="display:flex;align-items:center">{donut}<div>{"".join(legend)}</div></div>'


def draw_graph(style: Style, frames: list[Frame], window: Window, width: int, height: int) -> str:
    lines = [
        Line(name, style, number, frame, index)
        for number, (frame, index, name) in enumerate(columns(frames))
    ]
    defaults = style.config["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    if stacked:
        _stack(lines)
    steps = [step for step in defaults.get("thresholds", {}).get("steps", []) if step["value"]]
    top = max([value for line in lines for _, value, _ in line.points] + [0.0]) or 1.0
    top = 1.08 * max([top, *(step["value"] for step in steps if step["value"] <= 2 * top)])
    bottom = height - 18 * (1 + len(lines) // 5) - 24
    scale = Scale(window, top, left=64, right=width - 12, bottom=bottom)
    parts = [_draw_axes(scale, defaults)]
    for line in lines:
        if defaults["custom"]["drawStyle"] == "bars":
            parts.append(_draw_bars(scale, line))
        else:
            parts.append(_draw_line(scale, line, filled=stacked))
    if defaults["custom"]["thresholdsStyle"]["mode"] == "dashed":
        for step in steps:
            if step["value"] <= top:
                dashes = f'stroke="{COLOURS[step["color"]]}" stroke-dasharray="8 6"'
                parts.append(scale.across(step["value"], dashes))
    legend = " ".join(
        f'<span><b style="color:{line.colour}">&#9644;</b> {escape(line.name)}: {now}</span>'
        for line, now in (
            (line, write(line.last, defaults) or defaults["noValue"]) for line in lines
        )
    )
    size = f'width="{width}" height="{bottom + 24}"'
    svg = f'<svg {size} fill="#8e8e9a" font-size="11">{"".join(parts)}</svg>'
    return f'{svg}<div class="legend">{legend}</div>'


@dataclass(frozen=True)
class Scale:
    """The place of times and values in a graph, in pixels. *top*: the value at its upper edge."""

    window: Window
    top: float
    left: int
    right: int
    bottom: int

    def x(self, when: float) -> str:
        share = (when - self.window.start) / (self.window.end - self.window.start)
        return f"{self.left + (self.right - self.left) * share:.1f}"

    def y(self, value: float) -> str:
        return f"{6 + (self.bottom - 6) * (1 - value / self.top):.1f}"

    def across(self, value: float, stroke: str) -> str:
        """Return a horizontal line at *value*."""
        return f'<path d="M{self.left} {self.y(value)}H{self.right}" {stroke}/>'


def _stack(lines: list["Line"]) -> None:
    """Put each line on top of those before it."""
    below: dict[float, float] = {}
    for line in lines:
        line.points = [
            (when, value + below.get(when, 0.0), below.get(when, 0.0))
            for when, value, _ in line.points
        ]
        below |= {when: value for when, value, _ in line.points}


def _draw_axes(scale: Scale, defaults: Json) -> str:
    parts = []
    for tick in range(5):
        value = scale.top * tick / 4
        when = scale.window.start + (scale.window.end - scale.window.start) * tick / 4
        number = write(value, {**defaults, "decimals": None})
        anchor = "end" if tick == 4 else "middle"
        clock = datetime.fromtimestamp(when, UTC).strftime("%H:%M")
        left, below = scale.left - 6, scale.bottom + 18
        parts += [
            scale.across(value, 'stroke="#2a2d34"'),
            f'<text x="{left}" y="{scale.y(value)}" dy="4" text-anchor="end">{number}</text>',
            f'<text x="{scale.x(when)}" y="{below}" text-anchor="{anchor}">{clock}</text>',
        ]
    return "".join(parts)


def _draw_bars(scale: Scale, line: "Line") -> str:
    parts = []
    for when, value, below in line.points:
        ends = f'y1="{scale.y(below)}" y2="{scale.y(value)}"'
        at = f'x1="{scale.x(when)}" x2="{scale.x(when)}"'
        parts.append(f'<line {at} {ends} stroke="{line.colour}" stroke-width="6"/>')
    return "".join(parts)


def _draw_line(scale: Scale, line: "Line", *, filled: bool) -> str:
    path = "".join(
        f"{'L' if at else 'M'}{scale.x(when)} {scale.y(value)}"
        for at, (when, value, _) in enumerate(line.points)
    )
    area = ""
    if filled and path:
        back = "".join(
            f"L{scale.x(when)} {scale.y(below)}" for when, _, below in reversed(line.points)
        )
        area = f'<path d="{path}{back}Z" fill="{line.colour}" fill-opacity="0.3"/>'
    stroke = f'stroke="{line.colour}" stroke-width="{line.width}"'
    return f'{area}<path d="{path}" fill="none" {stroke}/>'


class Line:
    """A column of a frame: its points (Unix seconds, value, lower end where lines are stacked),
    without gaps.
    """

    def __init__(self, name: str, style: Style, number: int, frame: Frame, index: int) -> None:
        field = style.of(name)
        self.name = name
        self.colour = (
            style.colour(field, 0)
            if "fixedColor" in field["color"]
            else PALETTE[number % len(PALETTE)]
        )
        self.width = field.get("custom.lineWidth", 1) + 0.3
        values = [
            (_seconds(row[0]), float(row[index])) for row in frame.rows if row[index] is not None
        ]
        self.last = values[-1][1] if values else None
        self.points = [(when, value, 0.0) for when, value in values if not math.isnan(value)]


def columns(frames: list[Frame]) -> Iterator[tuple[Frame, int, str]]:
    """Yield every column other than the time: its frame, index and name."""
    for frame in frames:
        yield from (
            (frame, index, name) for index, name in enumerate(frame.columns) if name != "time"
        )


def _seconds(when: Any) -> float:
    return when.timestamp() if isinstance(when, datetime) else float(when)
