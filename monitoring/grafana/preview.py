r"""Draws the dashboards to PNG files without Grafana: the real queries of every panel, on Grafana's
grid, roughly in its style.

    python -m monitoring.grafana.preview --prometheus http://localhost:9090 \
        --dsn postgresql://... --into docs/pictures

Use it after a change to see whether a dashboard can be read. Needs chromium and the project.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path
from typing import Any

import psycopg

from monitoring.grafana.asking import Frame, Window, ask_postgresql, ask_prometheus
from monitoring.grafana.build import FOLDER
from monitoring.grafana.panels import Json
from monitoring.grafana.preview_style import Style
from monitoring.grafana.preview_svg import columns, draw_gauge, draw_graph, draw_pie

# 24 columns fill 1,900 pixels; the height of a row is Grafana's own.
CELL_WIDTH, CELL_HEIGHT, GAP = 79, 38, 8
STYLE = Path(__file__).with_suffix(".css").read_text()


def draw(panel: Json, frames: list[Frame], window: Window) -> str:
    """Return the content of a panel as HTML."""
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
    else:  # the last value of each column other than the time
        named = [(name, name, frame.rows[-1][index]) for frame, index, name in columns(frames)]
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


def page(dashboard: Json, prometheus: str, dsn: str, window: Window) -> tuple[str, int]:
    """Send every query of *dashboard*; return the page as HTML and its height in pixels."""
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
        corner = f"left:{at['x'] + 8}px;top:{at['y'] + 44}px"
        box = f"{corner};width:{at['w'] - GAP}px;height:{at['h'] - GAP}px"
        inside = draw(panel, frames, window)
        parts.append(
            f'<div class="panel" style="{box}"><div '
            f'class="title">{escape(panel["title"])}</div>{inside}</div>'
        )
        bottom = max(bottom, at["y"] + at["h"] + 44)
    note = "<small>a preview of the panels, not drawn by Grafana</small>"
    head = f"<h1>{escape(dashboard['title'])} {note}</h1>"
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
