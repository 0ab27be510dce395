"""The Grafana dashboards: their structure, and each of their queries on a real Prometheus and a
real database of a busy fleet.

No Grafana server takes part. monitoring.grafana.asking does what Grafana would do before it sends a
query: it fills in variables and macros.
"""

import json
import math
import re
import subprocess
import time
from datetime import datetime
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest
import yaml

from monitoring.grafana import build, preview
from monitoring.grafana.asking import Frame, Window, ask_postgresql, ask_prometheus
from monitoring.grafana.panels import Json
from tests.monitoring.stack import MONITORING, Stack, get_json
from tests.support.waiting import eventually
from webhookd.embedded.programs import package_binaries

GRAFANA = MONITORING / "grafana"
DOCS = MONITORING.parent / "docs"
DASHBOARDS: dict[str, Json] = {
    path.stem: json.loads(path.read_text()) for path in sorted(build.FOLDER.glob("*.json"))
}
EACH = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS.keys())
SOURCES: list[Json] = yaml.safe_load(
    (GRAFANA / "provisioning/datasources/webhookd.yml").read_text()
)["datasources"]
PROVIDERS: list[Json] = yaml.safe_load(
    (GRAFANA / "provisioning/dashboards/webhookd.yml").read_text()
)["providers"]

# What the first monitoring guide asks for.
GUIDE = {
    "Webhook Delivery Overview": {
        "Queue Depth": "gauge",
        "Delivery Rate": "timeseries",
        "Success Rate": "stat",
        "P99 Response Time": "timeseries",
        "Failed Deliveries": "timeseries",
    },
    "Worker Health": {
        "Worker Status": "stat",
        "Rate Limit Hits (5 min)": "bargauge",
        "Circuit Breaker Opens (1 h)": "bargauge",
    },
    "PostgreSQL Queue & Health": {
        "Webhook Status Distribution": "piechart",
        "Degraded Webhooks": "table",
        "Average Response Time by Webhook": "barchart",
    },
}
# The guide's thresholds. Where a panel counts 5 minutes, they are its numbers per minute times 5.
# 2.5 and not 2, because increase() extrapolates.
STEPS = {
    "Queue Depth": [(None, "green"), (100, "orange"), (1000, "red")],
    "Success Rate": [(None, "red"), (0.95, "orange"), (0.99, "green")],
    "P99 Response Time": [(None, "green"), (2, "orange"), (5, "red")],
    "Failed Deliveries": [(None, "green"), (0.5, "red")],
    "Worker Status": [(None, "red"), (1, "green")],
    "Rate Limit Hits (5 min)": [(None, "green"), (50, "orange"), (500, "red")],
    "Circuit Breaker Opens (1 h)": [(None, "orange"), (2.5, "red")],
}


def targets(key: str) -> list[Any]:
    """Return every query with *key* (`expr` or `rawSql`) as a parameter with the names of its
    dashboard and panel.
    """
    return [
        pytest.param(panel, target, id=f"{uid}: {panel['title']} {target['refId']}")
        for uid, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
        if key in target
    ]


def variables(dashboard: Json) -> dict[str, Json]:
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def last_minutes() -> Window:
    return Window(time.time() - 300, time.time())


@pytest.fixture(scope="module")
def monitor_dsn(busy_stack: Stack) -> str:
    """The busy fleet's database, as the role that dashboards use."""
    psql = [str(package_binaries() / "psql"), busy_stack.dsn, "--no-psqlrc", "--quiet"]
    subprocess.run([*psql, f"--file={MONITORING / 'webhookd_monitor.sql'}"], check=True, timeout=60)
    return f"{busy_stack.dsn} user=webhookd_monitor"


# Structure


def test_the_committed_dashboards_are_those_that_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in build.FOLDER.iterdir()} == {
        path.name: text for path, text in build.files()
    }


def test_every_panel_of_the_guide_is_there_under_its_title_and_of_its_kind() -> None:
    kinds = {
        d["title"]: {panel["title"]: panel["type"] for panel in d["panels"]}
        for d in DASHBOARDS.values()
    }
    assert kinds.keys() == GUIDE.keys()
    for title, panels in GUIDE.items():
        assert panels.items() <= kinds[title].items()


def test_thresholds_are_those_of_the_guide() -> None:
    found = {
        panel["title"]: panel["fieldConfig"]["defaults"]
        for d in DASHBOARDS.values()
        for panel in d["panels"]
    }
    for title, steps in STEPS.items():
        assert [
            (step["value"], step["color"]) for step in found[title]["thresholds"]["steps"]
        ] == steps, title


@EACH
def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: Json) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        assert (
            at["x"] >= 0
            and at["y"] >= 0
            and at["w"] > 0
            and at["h"] > 0
            and at["x"] + at["w"] <= 24
        ), panel["title"]
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


@EACH
def test_every_panel_explains_itself_and_says_what_no_data_means(dashboard: Json) -> None:
    for panel in dashboard["panels"]:
        assert panel["description"] and panel["fieldConfig"]["defaults"]["noValue"], panel["title"]


@EACH
def test_every_data_source_is_a_variable_that_stands_for_a_provisioned_one(dashboard: Json) -> None:
    provisioned = {source["uid"]: source["type"] for source in SOURCES}
    asked = [
        thing["datasource"]
        for thing in [*dashboard["panels"], *dashboard["templating"]["list"]]
        if "datasource" in thing
    ]
    for source in asked + [
        target["datasource"] for panel in dashboard["panels"] for target in panel["targets"]
    ]:
        variable = variables(dashboard)[source["uid"].strip("${}")]
        assert variable["type"] == "datasource"
        assert provisioned[variable["current"]["value"]] == variable["query"] == source["type"]


@EACH
def test_every_variable_that_is_used_is_defined_and_the_other_way_round(dashboard: Json) -> None:
    text = json.dumps(
        {
            "panels": dashboard["panels"],
            "list": [v.get("datasource") for v in dashboard["templating"]["list"]],
        }
    )
    used = {name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}
    defined = variables(dashboard)
    assert used == defined.keys()
    for name in ("worker", "webhook"):
        assert (
            defined[name]["multi"]
            and defined[name]["includeAll"]
            and defined[name]["current"]["value"] == ["$__all"]
        )


@EACH
def test_links_lead_to_dashboards_and_documents_that_exist(dashboard: Json) -> None:
    by_tag, runbook = dashboard["links"]
    assert by_tag["includeVars"] and by_tag["keepTime"]
    assert all(set(by_tag["tags"]) <= set(other["tags"]) for other in DASHBOARDS.values())
    links = [runbook["url"], *re.findall(r'"url": "([^"]+)"', json.dumps(dashboard["panels"]))]
    for url in links:
        here = re.match(r"/d/([\w-]+)\?", url)
        document = re.match(r"https://github\.com/webhookd/webhookd/blob/main/(docs/[\w.]+)", url)
        assert (here and here[1] in DASHBOARDS) or (
            document and (DOCS.parent / document[1]).exists()
        ), url


@EACH
def test_grafanas_own_model_knows_every_key(dashboard: Json) -> None:
    """Parse with the types that Grafana publishes, write again, and compare: a misspelt key would
    be missing.
    """
    sdk = "grafana-foundation-sdk: pip install 'grafana-foundation-sdk==1769699379!11.6.0'"
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason=f"NO {sdk}")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    model = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    plugins.register_default_plugins()
    again = json.loads(
        encoder.JSONEncoder(sort_keys=True).encode(model.Dashboard.from_json(dashboard))
    )
    assert paths(dashboard) - paths(again) == set()


def paths(value: Any, at: str = "") -> set[str]:
    """Return the path of every key in *value*."""
    if isinstance(value, dict):
        return {f"{at}.{key}" for key in value}.union(
            *(paths(inner, f"{at}.{key}") for key, inner in value.items())
        )
    if isinstance(value, list):
        return set().union(*(paths(inner, f"{at}[{index}]") for index, inner in enumerate(value)))
    return set()


# Provisioning


def test_provisioning_reads_only_variables_that_local_env_and_compose_set() -> None:
    text = "".join(path.read_text() for path in (GRAFANA / "provisioning").glob("*/*.yml"))
    used = set(re.findall(r"\$\{?(\w+)", re.sub(r"(?m)#.*$", "", text)))
    local = {
        line.partition("=")[0]
        for line in (GRAFANA / "local.env").read_text().splitlines()
        if line and line[0] != "#"
    }
    assert used == local
    compose = yaml.safe_load((MONITORING.parent / "compose.yml").read_text())
    assert used <= compose["services"]["grafana"]["environment"].keys()


def test_the_postgresql_source_is_as_grafana_12_wants_it_and_reads_only() -> None:
    source = next(source for source in SOURCES if source["uid"] == "webhookd-postgresql")
    assert (
        source["type"] == "grafana-postgresql-datasource" and source["user"] == "webhookd_monitor"
    )
    assert source["jsonData"]["database"] and "database" not in source and "password" not in source
    assert source["secureJsonData"] == {"password": "$MONITOR_PASSWORD"}


def test_the_provider_loads_a_folder_of_files() -> None:
    (provider,) = PROVIDERS
    assert provider["type"] == "file" and provider["options"]["path"] == "${DASHBOARDS_PATH}"


# Queries


@pytest.mark.parametrize(("panel", "target"), targets("expr"))
def test_every_promql_returns_data_from_a_busy_fleet(
    busy_stack: Stack, panel: Json, target: Json
) -> None:
    def ask() -> list[Frame]:
        return having_numbers(ask_prometheus(busy_stack.prometheus_url, target, last_minutes()))

    frames = eventually(ask, what=panel["title"])
    if "{{" in target["legendFormat"]:
        assert all(frame.columns[-1] for frame in frames), "a series without a name"


def having_numbers(frames: list[Frame]) -> list[Frame]:
    """Return the frames with at least one number other than NaN."""
    return [frame for frame in frames if any(not math.isnan(row[-1]) for row in frame.rows)]


@pytest.mark.parametrize(("panel", "target"), targets("rawSql"))
def test_every_sql_returns_rows_to_the_read_only_role(
    monitor_dsn: str, panel: Json, target: Json
) -> None:
    (frame,) = eventually(
        lambda: [
            frame for frame in ask_postgresql(monitor_dsn, target, last_minutes()) if frame.rows
        ],
        what=panel["title"],
    )
    first = frame.rows[0]
    if target["format"] == "time_series":
        assert frame.columns[0] == "time" and isinstance(first[0], datetime)
        assert len(first) > 1 and all(
            isinstance(value, int | float | Decimal) for value in first[1:]
        )
    if panel["type"] == "barchart":
        assert isinstance(first[frame.columns.index(panel["options"]["xField"])], str), (
            "Grafana's bar chart needs text on its axis"
        )
    names = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    if panel["type"] == "table":
        assert names <= set(frame.columns), "an override for a column that is not there"


def test_a_chosen_webhook_and_worker_are_all_that_is_left(
    busy_stack: Stack, monitor_dsn: str
) -> None:
    window, failing = last_minutes(), str(busy_stack.webhooks["failing"])

    def labels(uid: str, title: str, label: str, **chosen: str) -> set[str]:
        (panel,) = (panel for panel in DASHBOARDS[uid]["panels"] if panel["title"] == title)
        samples = busy_stack.query(window.fill_in(panel["targets"][0]["expr"], **chosen))
        return {sample["metric"].get(label, "") for sample in samples}

    all_failing = labels("webhookd-overview", "Webhooks Failing Most", "webhook_id")
    assert len(all_failing) > 1
    assert labels("webhookd-overview", "Webhooks Failing Most", "webhook_id", webhook=failing) == {
        failing
    }
    assert labels(
        "webhookd-workers", "Worker Status", "worker_id", worker="(worker-1|worker-2)"
    ) == {"worker-1", "worker-2"}
    (panel,) = (
        panel
        for panel in DASHBOARDS["webhookd-postgresql"]["panels"]
        if panel["title"] == "Degraded Webhooks"
    )
    target = {"rawSql": window.fill_in(panel["targets"][0]["rawSql"], webhook=failing)}
    assert [
        str(row[0]) for frame in ask_postgresql(monitor_dsn, target, window) for row in frame.rows
    ] == [failing]
    crafted = {
        "rawSql": window.fill_in(panel["targets"][0]["rawSql"], webhook="' OR true OR 'a' <> '")
    }
    assert [frame.rows for frame in ask_postgresql(monitor_dsn, crafted, window)] == [[]]


@EACH
def test_the_values_to_choose_from_are_the_fleets(
    busy_stack: Stack, monitor_dsn: str, dashboard: Json
) -> None:
    found = {}
    for name in ("worker", "webhook"):
        query = variables(dashboard)[name]["query"]
        by_label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        if by_label:
            api = f"{busy_stack.prometheus_url}/api/v1"
            url = f"{api}/label/{by_label[2]}/values?match[]={by_label[1]}"
            found[name] = set(get_json(url)["data"])
        else:
            (frame,) = ask_postgresql(monitor_dsn, {"rawSql": query}, last_minutes())
            found[name] = {str(row[0]) for row in frame.rows}
    assert found["worker"] == {"worker-1", "worker-2", "worker-3"}
    assert {str(busy_stack.webhooks[name]) for name in ("healthy", "slow", "failing")} <= found[
        "webhook"
    ]


@EACH
def test_the_preview_draws_every_panel(
    busy_stack: Stack, monitor_dsn: str, dashboard: Json
) -> None:
    html, height = preview.page(dashboard, busy_stack.prometheus_url, monitor_dsn, last_minutes())
    assert html.count('class="panel"') == len(dashboard["panels"]) and height > 800


def test_the_documents_pictures_are_there_and_small() -> None:
    text = (DOCS / "dashboards.md").read_text()
    for uid, dashboard in DASHBOARDS.items():
        picture = DOCS / "pictures" / f"{uid}.png"
        assert f"](pictures/{uid}.png)" in text and dashboard["title"] in text
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 300_000
