"""What the dashboards share: frame, variables, links, and words and colours with the same meaning
everywhere.
"""

from typing import Any

from monitoring.grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    POSTGRESQL,
    PROMETHEUS,
    PURPLE,
    RED,
    Json,
    colour,
    words,
)

RUNBOOK = "https://github.com/webhookd/webhookd/blob/main/docs/runbook.md"
TAG = "webhookd"

# Selectors of Prometheus and SQL; Grafana puts the chosen workers and webhooks in.
OURS = 'service="webhook-delivery"'
WORKER = 'worker_id=~"$worker"'
CHOSEN = f'{WORKER},webhook_id=~"$webhook"'
# Grafana quotes each chosen value, so nothing in a name or a link can break out of its string.
WORKER_SQL = "worker_id LIKE ANY (ARRAY[${worker:sqlstring}])"
CHOSEN_SQL = "webhook_id::text LIKE ANY (ARRAY[${webhook:sqlstring}])"

UP_OR_DOWN = [words({"0": ("DOWN", RED), "1": ("up", GREEN)})]
STATUS_COLOURS = [colour("delivered", GREEN), colour("failed", RED), colour("timeout", ORANGE)]
HEALTH = {"healthy": GREEN, "degraded": ORANGE, "unavailable": RED, "unknown": GREY}
CAUSES = {
    "due": BLUE,
    "scheduled": GREEN,
    "circuit": RED,
    "hold": ORANGE,
    "rate": "yellow",
    "in_flight": PURPLE,
    "paused": GREY,
    "configuration": "dark-orange",
    "unregistered": "dark-red",
}
WHAT_CAUSES_MEAN = (
    "What waits, and for what. due: for a worker; scheduled: for its next try; circuit, hold,"
    " rate, in_flight: its webhook is held back; paused, unregistered, configuration: an operator"
    " must resume, register or correct the webhook, or the service's options."
)

OF_WEBHOOK = [
    {
        "title": "This webhook in Webhook Delivery Overview",
        "url": "/d/webhookd-overview?var-webhook=${__value.raw}&${__url_time_range}",
    }
]
OF_ALERT = [
    {"title": "What to do (runbook)", "url": RUNBOOK + "#${__value.raw}", "targetBlank": True}
]


def dashboard(
    uid: str, title: str, description: str, variables: list[Json], panels: list[Json]
) -> Json:
    """Return a dashboard of *panels*, numbered in their order."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the crosshair is shared by all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            _link(
                "webhookd",
                type="dashboards",
                tags=[TAG],
                icon="external link",
                includeVars=True,
                keepTime=True,
            ),
            _link(
                "Runbook",
                type="link",
                url=RUNBOOK,
                icon="doc",
                targetBlank=True,
                tooltip="What to do about each alert",
            ),
        ],
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }


def metrics_variables() -> list[Json]:
    """Return the variables of a dashboard that asks Prometheus."""
    return [
        _variable(
            "prometheus",
            "Prometheus",
            "datasource",
            query="prometheus",
            current=_chosen("Prometheus", "webhookd-prometheus"),
        ),
        _choice("worker", PROMETHEUS, "label_values(worker_health_status, worker_id)", every=".*"),
        _choice(
            "webhook", PROMETHEUS, "label_values(webhook_deliveries_total, webhook_id)", every=".*"
        ),
    ]


def database_variables() -> list[Json]:
    """Return the variables of a dashboard that asks PostgreSQL. The 500 webhooks are those with
    the latest attempts.
    """
    workers = "SELECT DISTINCT worker_id FROM pggit.workers ORDER BY worker_id"
    webhooks = (
        "SELECT webhook_id::text FROM pggit.webhook_health_metrics"
        " ORDER BY last_check_at DESC NULLS LAST, webhook_id LIMIT 500"
    )
    source = _variable(
        "postgresql",
        "PostgreSQL",
        "datasource",
        query=POSTGRESQL["type"],
        current=_chosen("PostgreSQL", "webhookd-postgresql"),
    )
    return [
        source,
        _choice("worker", POSTGRESQL, workers, every="'%'"),
        _choice("webhook", POSTGRESQL, webhooks, every="'%'"),
    ]


def _choice(name: str, source: Json, query: str, *, every: str) -> Json:
    """Return a variable with several values. "All" is the pattern *every*, so new values are
    included.

    Grafana inserts *every* unchanged, in any format that the query asks for.
    """
    return _variable(
        name,
        name.capitalize(),
        "query",
        query=query,
        datasource=source,
        current=_chosen(["All"], ["$__all"]),
        allValue=every,
        includeAll=True,
        multi=True,
        refresh=2,  # with the time range
        sort=3,  # by number
    )


def _variable(name: str, label: str, kind: str, **more: Any) -> Json:
    usual = {
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }
    return {"name": name, "label": label, "type": kind} | usual | more


def _chosen(text: Any, value: Any) -> Json:
    return {"selected": True, "text": text, "value": value}


def _link(title: str, **more: Any) -> Json:
    usual = {
        "asDropdown": False,
        "includeVars": False,
        "keepTime": False,
        "tags": [],
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }
    return {"title": title} | usual | more
