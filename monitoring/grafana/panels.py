"""Panels of Grafana dashboards as plain dictionaries, in Grafana's classic JSON model (schema
version 39: Grafana 11 and newer).

They have only the options that these dashboards use. `frame.dashboard` gives each panel its id.
"""

from textwrap import dedent
from typing import Any, TypedDict, Unpack

Json = dict[str, Any]
At = tuple[int, int, int, int]  # x, y, width, height on Grafana's grid of 24 columns

PROMETHEUS = {"type": "prometheus", "uid": "${prometheus}"}
POSTGRESQL = {"type": "grafana-postgresql-datasource", "uid": "${postgresql}"}

GREEN, ORANGE, RED, BLUE, PURPLE, GREY = "green", "orange", "red", "blue", "purple", "#808080"


class Shown(TypedDict, total=False):
    """How values are shown. *steps*: (from, colour) pairs, the first one from None. *empty*: the
    text where there is no data.
    """

    unit: str
    decimals: int
    min: float
    max: float
    steps: list[tuple[float | None, str]]
    mappings: list[Json]
    empty: str


def promql(expr: str, legend: str = "", *, instant: bool = False, table: bool = False) -> Json:
    """Return a Prometheus query, over the dashboard's time range or (*instant*) at its end."""
    return {
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "expr": expr,
        "format": "table" if table else "time_series",
        "instant": instant or table,
        "range": not (instant or table),
        "legendFormat": legend or "__auto",
    }


def sql(statement: str, *, time_series: bool = False) -> Json:
    """Return a PostgreSQL query. A time series has a column `time`, and its other columns are
    numbers.
    """
    return {
        "datasource": POSTGRESQL,
        "editorMode": "code",
        "format": "time_series" if time_series else "table",
        "rawQuery": True,
        "rawSql": dedent(statement).strip(),
    }


def words(texts: dict[str, tuple[str, str]]) -> Json:
    """Return a mapping of values to (text, colour)."""
    return {
        "type": "value",
        "options": {
            value: {"index": index, "text": text, "color": colour}
            for index, (value, (text, colour)) in enumerate(texts.items())
        },
    }


def column(
    name: str,
    *,
    links: list[Json] | None = None,
    cell: str = "",
    width: int = 0,
    **shown: Unpack[Shown],
) -> Json:
    """Return an override for a table's column. *cell*: `color-background` or `color-text`; *shown*:
    as in `Shown`.
    """
    properties: list[Json] = [
        {"id": key, "value": value} for key, value in _standard(shown).items()
    ]
    if cell:
        properties.append({"id": "custom.cellOptions", "value": {"type": cell}})
    if width:
        properties.append({"id": "custom.width", "value": width})
    if links:
        properties.append({"id": "links", "value": links})
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def colour(name: str, fixed: str, *, width: int = 0) -> Json:
    """Return an override that gives a series its colour, and a line's width in pixels."""
    properties: list[Json] = [{"id": "color", "value": {"mode": "fixed", "fixedColor": fixed}}]
    if width:
        properties.append({"id": "custom.lineWidth", "value": width})
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def timeseries(
    at: At,
    title: str,
    description: str,
    targets: list[Json],
    *,
    label: str = "",
    stacked: bool = False,
    bars: bool = False,
    overrides: list[Json] | None = None,
    **shown: Unpack[Shown],
) -> Json:
    """Return a graph. *steps* in *shown* are drawn as dashed lines; *label* names the y-axis."""
    custom = {
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 60 if bars else 25 if stacked else 8,
        "lineWidth": 0 if bars else 1,
        "showPoints": "never",
        "spanNulls": False,
        "axisLabel": label,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "dashed" if "steps" in shown else "off"},
    }
    options = {
        # `last`, not `lastNotNull`: a series that has ended must not keep showing its last number.
        "legend": {
            "displayMode": "list",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["last"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    # Without a colour: this text is shown in the legend, after a line has ended.
    empty = shown.pop("empty", "no data")
    panel = _panel("timeseries", at, title, description, targets, shown, overrides, options)
    panel["fieldConfig"]["defaults"] |= {
        "noValue": empty,
        "custom": custom,
        "color": {"mode": "palette-classic"},
    }
    return panel


def stat(
    at: At,
    title: str,
    description: str,
    target: Json,
    *,
    background: bool = True,
    **shown: Unpack[Shown],
) -> Json:
    """Return big numbers, one a series or column. *background*: colour it instead of the text."""
    options = {
        "reduceOptions": _last(),
        "colorMode": "background" if background else "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
    }
    return _panel("stat", at, title, description, [target], shown, None, options)


def gauge(at: At, title: str, description: str, target: Json, **shown: Unpack[Shown]) -> Json:
    """Return a dial."""
    options = {
        "reduceOptions": _last(),
        "showThresholdLabels": False,
        "showThresholdMarkers": True,
        "orientation": "auto",
    }
    return _panel("gauge", at, title, description, [target], shown, None, options)


def bars(
    at: At,
    title: str,
    description: str,
    target: Json,
    *,
    overrides: list[Json] | None = None,
    **shown: Unpack[Shown],
) -> Json:
    """Return a list of named bars, one a series or column."""
    options = {
        "reduceOptions": _last(),
        "displayMode": "gradient",
        "orientation": "horizontal",
        "showUnfilled": True,
        "namePlacement": "left",
        "valueMode": "color",
        "minVizHeight": 16,
        "maxVizHeight": 32,
        "sizing": "manual",
    }
    return _panel("bargauge", at, title, description, [target], shown, overrides, options)


def pie(
    at: At,
    title: str,
    description: str,
    target: Json,
    *,
    overrides: list[Json],
    **shown: Unpack[Shown],
) -> Json:
    """Return a pie, one piece a series or column."""
    options = {
        "reduceOptions": _last(),
        "pieType": "donut",
        "displayLabels": ["name", "value"],
        "legend": {
            "displayMode": "table",
            "placement": "right",
            "showLegend": True,
            "values": ["value", "percent"],
        },
        "tooltip": {"mode": "single", "sort": "none"},
    }
    panel = _panel("piechart", at, title, description, [target], shown, overrides, options)
    panel["fieldConfig"]["defaults"]["color"] = {"mode": "palette-classic"}
    return panel


def barchart(
    at: At, title: str, description: str, target: Json, *, x: str, **shown: Unpack[Shown]
) -> Json:
    """Return bars over the column *x*, which must be text."""
    options = {
        "xField": x,
        "orientation": "horizontal",
        "showValue": "always",
        "stacking": "none",
        "barWidth": 0.8,
        "groupWidth": 0.7,
        "fullHighlight": False,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    panel = _panel("barchart", at, title, description, [target], shown, None, options)
    panel["fieldConfig"]["defaults"] |= {
        "custom": {"fillOpacity": 70, "lineWidth": 0},
        "color": {"mode": "thresholds"},
    }
    return panel


def table(
    at: At,
    title: str,
    description: str,
    target: Json,
    overrides: list[Json],
    *,
    empty: str,
    sort: str = "",
) -> Json:
    """Return a table. *empty* is its text without rows, and in cells without a value unless their
    column has a text of its own.
    """
    options = {
        "cellHeight": "sm",
        "showHeader": True,
        "footer": {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""},
    }
    panel = _panel("table", at, title, description, [target], {}, overrides, options)
    if sort:
        panel["options"]["sortBy"] = [{"displayName": sort, "desc": False}]
    panel["fieldConfig"]["defaults"] |= {
        "noValue": empty,
        "custom": {"align": "auto", "filterable": False, "inspect": False},
    }
    return panel


def arranged(panel: Json, **names: str) -> Json:
    """Return a table of a Prometheus query whose columns are these labels (or `Value`), in this
    order, with these names.
    """
    options = {
        "excludeByName": {name: True for name in ("Time", "Value") if name not in names},
        "indexByName": {label: index for index, label in enumerate(names)},
        "renameByName": names,
    }
    return panel | {"transformations": [{"id": "organize", "options": options}]}


def by_row(panel: Json, name: str, value: str) -> Json:
    """Return the panel with a column for each row of its table, so that an override can give each
    its colour.
    """
    fields = [
        {"fieldName": name, "handlerKey": "field.name"},
        {"fieldName": value, "handlerKey": "field.value"},
    ]
    return panel | {"transformations": [{"id": "rowsToFields", "options": {"mappings": fields}}]}


def _panel(
    kind: str,
    at: At,
    title: str,
    description: str,
    targets: list[Json],
    shown: Shown,
    overrides: list[Json] | None,
    options: Json,
) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "gridPos": dict(zip("xywh", at, strict=True)),
        "datasource": targets[0]["datasource"],
        "targets": [target | {"refId": "ABCDEFGH"[index]} for index, target in enumerate(targets)],
        "fieldConfig": {
            "defaults": {"color": {"mode": "thresholds"}} | _standard(shown),
            "overrides": overrides or [],
        },
        "options": options,
    }


def _standard(shown: Shown) -> Json:
    """Return *shown* (as `Shown`) as Grafana's standard options."""
    standard: Json = {
        key: value for key, value in shown.items() if key in ("unit", "decimals", "min", "max")
    }
    mappings = list(shown.get("mappings", []))
    if "steps" in shown:
        steps = [{"value": value, "color": colour} for value, colour in shown["steps"]]
        standard["thresholds"] = {"mode": "absolute", "steps": steps}
    if "empty" in shown:
        standard["noValue"] = shown["empty"]
        # A number without a value would take the colour of the lowest step, which may be red.
        mappings.append(
            {
                "type": "special",
                "options": {"match": "null+nan", "result": {"text": shown["empty"], "color": GREY}},
            }
        )
    if mappings:
        standard["mappings"] = mappings
    return standard


def _last() -> Json:
    return {"calcs": ["lastNotNull"], "fields": "", "values": False}
