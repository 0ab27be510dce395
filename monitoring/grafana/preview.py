"""Draws the dashboards to PNG files without a Grafana: every panel's real queries, on Grafana's
grid, roughly in its style.

    python -m monitoring.grafana.preview --prometheus http://localhost:9090 --dsn postgresql://... --into docs/pictures

For people who change the dashboards and want to see at once whether they can be read. Needs
chromium, and the project itself.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import psycopg

from monitoring.grafana.asking import Frame, Window, ask_postgresql, ask_prometheus
from monitoring.grafana.build import FOLDER
from monitoring.grafana.panels import Json

CELL_WIDTH, CELL_HEIGHT, GAP = (
    79,
    38,
    8,
)  # 24 columns fill 1,900 pixels; Grafana's own height of a row
COLOURS = {
    **{
        "green": "#73BF69",
        "orange": "#FF9830",
        "red": "#F2495C",
        "blue": "#5794F2",
        "purple": "#B877D9",
        "yellow": "#FADE2A",
    },
    "dark-red": "#C4162A",
}
PALETTE = ["#73BF69", "#F2CC0C", "#5794F2", "#FF9830", "#F2495C", "#B877D9", "#8AB8FF", "#96D98D"]
STYLE = Path(__file__).with_suffix(".css").read_text()


@dataclass(frozen=True)
class Style:
    """A panel's field options."""

    config: Json

    def of(self, name: str) -> Json:
        """Return the options of the field *name*."""
        options = dict(self.config["defaults"])
        for override in self.config["overrides"]:
            if override["matcher"]["options"] == name:
                options.update({prop["id"]: prop["value"] for prop in override["properties"]})
        return options

    def show(self, name: str, value: Any) -> tuple[str, str]:
        """Return the text and the colour of a value."""
        options = self.of(name)
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        for mapping in options.get("mappings", []):
            key = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
            found = (
                mapping["options"].get("result")
                if mapping["type"] == "special" and missing
                else mapping["options"].get(key)
            )
            if found and (missing or mapping["type"] == "value"):
                return str(found["text"]), COLOURS.get(found["color"], found["color"])
        return write(value, options), self.colour(options, value)

    def colour(self, options: Json, value: Any) -> str:
        fixed = options.get("color", {}).get("fixedColor")
        if fixed:
            return COLOURS.get(fixed, str(fixed))
        colour = "green"
        for step in options.get("thresholds", {}).get("steps", []):
            if step["value"] is None or (
                not isinstance(value, str | None) and float(value) >= step["value"]
            ):
                colour = step["color"]
        return COLOURS.get(colour, colour)


def write(value: Any, options: Json) -> str:
    """Return a value in its unit, about as Grafana writes it."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    number, decimals = float(value), options.get("decimals")
    if options.get("unit") == "dateTimeFromNow":
        return f"{(time.time() - number / 1000) / 60:.0f} minutes ago"
    if math.isnan(number):
        return ""
    for unit, size, name in (
        ("s", 3600, " hours"),
        ("s", 60, " min"),
        ("s", 1, " s"),
        ("ms", 1000, " s"),
        ("ms", 0, " ms"),
    ):
        if options.get("unit") == unit and number >= size:
            return _round(number / (size or 1), 1 if size > 1 else decimals) + name
    if options.get("unit") == "s":
        return _round(number * 1000, 0 if number else decimals) + (" ms" if number else " s")
    if options.get("unit") in ("percentunit", "percent"):
        return _round(number * (100 if options["unit"] == "percentunit" else 1), decimals) + "%"
    suffix = options.get("unit", "").partition("suffix:")[2]
    return (
        f"{number:,.0f}" if options.get("unit") == "locale" else _round(number, decimals) + suffix
    )


def _round(number: float, decimals: int | None) -> str:
    if decimals is None:
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
    return f"{number:.{decimals}f}"


def draw(panel: Json, frames: list[Frame], window: Window) -> str:
    """Return a panel's inside as HTML."""
    style, empty = (
        Style(panel["fieldConfig"]),
        panel["fieldConfig"]["defaults"].get("noValue", "No data"),
    )
    width, height = (
        panel["gridPos"]["w"] * CELL_WIDTH - GAP,
        panel["gridPos"]["h"] * CELL_HEIGHT - GAP - 34,
    )
    kind, options = panel["type"], panel["options"]
    if any(change["id"] == "rowsToFields" for change in panel.get("transformations", [])):
        frames = [
            Frame(
                [row[0] for row in frames[0].rows],
                [[row[1] for row in frames[0].rows]] if frames[0].rows else [],
            )
        ]
    if kind in ("stat", "gauge") and not any(frame.rows for frame in frames):
        frames = [Frame([""], [[None]])]
    if not any(frame.rows for frame in frames):
        return f'<div class="empty">{escape(empty)}</div>'
    if kind == "timeseries":
        return draw_graph(style, frames, window, width, height)
    if kind == "table":
        return draw_table(style, panel, frames[0])
    if kind == "barchart":
        named = [(str(row[0]), frames[0].columns[1], row[1]) for row in frames[0].rows]
    else:  # the last value of each column that is no time
        named = [(name, name, frame.rows[-1][index]) for frame, index, name in _columns(frames)]
    if kind == "piechart":
        return draw_pie(style, named, height)
    if kind in ("bargauge", "barchart"):
        return draw_bars(style, named, min(22, height // len(named) - 4))
    if kind == "gauge":
        return draw_gauge(style, named[0][2], height)
    cells = []
    for name, field, value in named:
        text, colour = style.show(field, value)
        paint = (
            f"background:{colour};color:#fff"
            if options["colorMode"] == "background"
            else f"color:{colour}"
        )
        label = f"<div>{escape(name)}</div>" if len(named) > 1 else ""
        number = f'<div style="font-size:{min(height // 2, 44)}px">{escape(text)}</div>'
        cells.append(f'<div class="stat" style="{paint}">{label}{number}</div>')
    return f'<div class="stats">{"".join(cells)}</div>'


def draw_table(style: Style, panel: Json, frame: Frame) -> str:
    order = list(range(len(frame.columns)))
    names = dict(enumerate(frame.columns))
    for change in panel.get("transformations", []):
        shown = change["options"]["renameByName"]
        order = [frame.columns.index(label) for label in shown if label in frame.columns]
        names = {index: shown[frame.columns[index]] for index in order}
    head = "".join(f"<th>{escape(names[index])}</th>" for index in order)
    body = []
    for row in frame.rows:
        cells = []
        for index in order:
            text, colour = style.show(names[index], row[index])
            text = text or style.config["defaults"]["noValue"]
            cell = style.of(names[index]).get("custom.cellOptions", {}).get("type", "")
            paint = {
                "color-background": f"background:{colour};color:#fff",
                "color-text": f"color:{colour}",
            }.get(cell, "")
            if style.of(names[index]).get("links"):
                paint += ";color:#6e9fff"
            cells.append(f'<td style="{paint}">{escape(text)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def draw_bars(style: Style, named: list[tuple[str, str, Any]], thickness: int) -> str:
    most = max(float(value) for _, _, value in named) or 1
    parts = []
    for name, field, value in named:
        text, colour = style.show(field, float(value))
        bar = f'<span style="width:{100 * float(value) / most:.1f}%;background:{colour}"></span>'
        ends = f"<b>{escape(name)}</b>", f'<u style="color:{colour}">{escape(text)}</u>'
        parts.append(
            f'<div class="bar" style="height:{thickness}px">{ends[0]}<i>{bar}</i>{ends[1]}</div>'
        )
    return "".join(parts)


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
    number = f'<text x="100" y="92" text-anchor="middle" font-size="30" fill="{colour}">{escape(text)}</text>'
    return (
        f'<svg viewBox="0 0 200 115" width="100%" height="{height}">{"".join(arcs)}{number}</svg>'
    )


def _arc(
    low: float, high: float, radius: float, width: float, colour: str, *, turn: float = math.pi
) -> str:
    """Return a piece of a half circle (or, *turn* 2 pi, of a whole one), from *low* to *high* of 1."""
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
        for number, (frame, index, name) in enumerate(_columns(frames))
    ]
    defaults = style.config["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    floor: dict[float, float] = {}  # how high the lines below reach
    if stacked:
        for line in lines:
            line.points = [
                (when, value + floor.get(when, 0.0), floor.get(when, 0.0))
                for when, value, _ in line.points
            ]
            floor |= {when: value for when, value, _ in line.points}
    steps = [step for step in defaults.get("thresholds", {}).get("steps", []) if step["value"]]
    top = max([value for line in lines for _, value, _ in line.points] + [0.0]) or 1.0
    top = 1.08 * max([top, *(step["value"] for step in steps if step["value"] <= 2 * top)])
    left, right, bottom = 64, width - 12, height - 18 * (1 + len(lines) // 5) - 24

    def x(when: float) -> str:
        return f"{left + (right - left) * (when - window.start) / (window.end - window.start):.1f}"

    def y(value: float) -> str:
        return f"{6 + (bottom - 6) * (1 - value / top):.1f}"

    parts = []
    for tick in range(5):
        value, when = top * tick / 4, window.start + (window.end - window.start) * tick / 4
        number, anchor = (
            write(value, {**defaults, "decimals": None}),
            "end" if tick == 4 else "middle",
        )
        parts.append(f'<path d="M{left} {y(value)}H{right}" stroke="#2a2d34"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y(value)}" dy="4" text-anchor="end">{number}</text>'
        )
        clock = datetime.fromtimestamp(when, UTC).strftime("%H:%M")
        parts.append(f'<text x="{x(when)}" y="{bottom + 18}" text-anchor="{anchor}">{clock}</text>')
    for line in lines:
        if defaults["custom"]["drawStyle"] == "bars":
            for when, value, below in line.points:
                ends = f'y1="{y(below)}" y2="{y(value)}"'
                parts.append(
                    f'<line x1="{x(when)}" x2="{x(when)}" {ends} stroke="{line.colour}" '
                    'stroke-width="6"/>'
                )
            continue
        path = "".join(
            f"{'L' if at else 'M'}{x(when)} {y(value)}"
            for at, (when, value, _) in enumerate(line.points)
        )
        if stacked and path:
            back = "".join(f"L{x(when)} {y(below)}" for when, _, below in reversed(line.points))
            parts.append(f'<path d="{path}{back}Z" fill="{line.colour}" fill-opacity="0.3"/>')
        parts.append(
            f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="{line.width}"/>'
        )
    for step in steps:
        if step["value"] <= top and defaults["custom"]["thresholdsStyle"]["mode"] == "dashed":
            colour = COLOURS[step["color"]]
            parts.append(
                f'<path d="M{left} {y(step["value"])}H{right}" stroke="{colour}" '
                'stroke-dasharray="8 6"/>'
            )
    legend = " ".join(
        f'<span><b style="color:{line.colour}">&#9644;</b> {escape(line.name)}: {now}</span>'
        for line, now in (
            (line, write(line.last, defaults) or defaults["noValue"]) for line in lines
        )
    )
    svg = f'<svg width="{width}" height="{bottom + 24}" fill="#8e8e9a" font-size="11">{"".join(parts)}</svg>'
    return f'{svg}<div class="legend">{legend}</div>'


class Line:
    """A column of a frame: its points (Unix seconds, value, what is below it where lines are
    stacked), without the gaps.
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


def _columns(frames: list[Frame]) -> Iterator[tuple[Frame, int, str]]:
    """Yield every column that is no time: its frame, index and name."""
    for frame in frames:
        yield from (
            (frame, index, name) for index, name in enumerate(frame.columns) if name != "time"
        )


def _seconds(when: Any) -> float:
    return when.timestamp() if isinstance(when, datetime) else float(when)


def page(dashboard: Json, prometheus: str, dsn: str, window: Window) -> tuple[str, int]:
    """Ask every query of *dashboard*; return the page as HTML and its height in pixels."""
    parts, bottom = [], 0
    for panel in dashboard["panels"]:
        frames = []
        for target in panel["targets"]:
            ask = ask_prometheus if "expr" in target else ask_postgresql
            frames += ask(prometheus if "expr" in target else dsn, target, window)
        at = {
            key: panel["gridPos"][key] * (CELL_WIDTH if key in "xw" else CELL_HEIGHT)
            for key in "xywh"
        }
        box = f"left:{at['x'] + 8}px;top:{at['y'] + 44}px;width:{at['w'] - GAP}px;height:{at['h'] - GAP}px"
        inside = draw(panel, frames, window)
        parts.append(
            f'<div class="panel" style="{box}"><div '
            f'class="title">{escape(panel["title"])}</div>{inside}</div>'
        )
        bottom = max(bottom, at["y"] + at["h"] + 44)
    head = f"<h1>{escape(dashboard['title'])} <small>a preview of the panels, not Grafana's own drawing</small></h1>"
    return (
        f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{head}{"".join(parts)}',
        bottom,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prometheus", required=True, help="URL")
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--into", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    window = Window(time.time() - 60 * arguments.minutes, time.time())
    arguments.into.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob("*.json")):
        try:
            html, height = page(
                json.loads(path.read_text()), arguments.prometheus, arguments.dsn, window
            )
        except (OSError, ValueError, psycopg.Error) as failure:
            asked = (
                "PostgreSQL"
                if isinstance(failure, psycopg.Error)
                else f"Prometheus at {arguments.prometheus}"
            )
            sys.exit(
                f"preview: {path.stem}: {asked} gives no answer: {' '.join(str(failure).split())}"
            )
        with tempfile.NamedTemporaryFile("w", suffix=".html") as file:
            file.write(html)
            file.flush()
            picture = arguments.into / f"{path.stem}.png"
            chromium = [
                "chromium",
                "--headless",
                "--no-sandbox",
                "--hide-scrollbars",
                f"--window-size=1912,{height}",
            ]
            command = [*chromium, f"--screenshot={picture}", f"file://{file.name}"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        print(picture)


if __name__ == "__main__":
    main()
