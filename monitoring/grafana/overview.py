"""The dashboard "Webhook Delivery Overview": is anything wrong, since when, for which webhooks?"""

from monitoring.grafana.frame import (
    CAUSES,
    CHOSEN,
    OF_ALERT,
    OURS,
    STATUS_COLOURS,
    UP_OR_DOWN,
    WHAT_CAUSES_MEAN,
    dashboard,
    metrics_variables,
)
from monitoring.grafana.panels import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    arranged,
    bars,
    colour,
    column,
    gauge,
    promql,
    stat,
    table,
    timeseries,
    words,
)

ATTEMPTS = f"rate(webhook_deliveries_total{{{CHOSEN}}}[$__rate_interval])"
UNDELIVERED = f'rate(webhook_deliveries_total{{status=~"failed|timeout",{CHOSEN}}}[5m])'
BUCKETS = f"webhook_delivery_duration_seconds_bucket{{{CHOSEN}}}"
# Milliseconds, as Grafana counts time. Alerts of other services in the same Prometheus have
# another `service`.
FIRING_SINCE = (
    f"1000 * min by (alertname, severity) (ALERTS_FOR_STATE{{{OURS}}}"
    f' and ignoring (alertstate) ALERTS{{alertstate="firing",{OURS}}})'
)
P99_5M = f"histogram_quantile(0.99, sum by (le) (rate({BUCKETS}[5m])))"

DASHBOARD = dashboard(
    "webhookd-overview",
    "Webhook Delivery Overview",
    "Is anything wrong, since when, and for which webhooks?",
    metrics_variables(),
    [
        gauge(
            (0, 0, 4, 6),
            "Queue Depth",
            "Deliveries that are due or wait for a retry, of all webhooks. Every worker reports the"
            " same queue, so this is the maximum. Up to 100 is normal, above 1,000 is critical.",
            promql("max(webhook_queue_depth)", instant=True),
            min=0,
            max=1500,
            decimals=0,
            steps=[(None, GREEN), (100, ORANGE), (1000, RED)],
            empty="unknown",
        ),
        stat(
            (4, 0, 4, 6),
            "Success Rate",
            "The share of delivered attempts among all attempts of the last 5 minutes. Above 99 %"
            " is the target, below 95 % is critical.",
            promql(
                f'sum(rate(webhook_deliveries_total{{status="delivered",{CHOSEN}}}[5m]))'
                f" / (sum(rate(webhook_deliveries_total{{{CHOSEN}}}[5m])) > 0)",
                instant=True,
            ),
            unit="percentunit",
            decimals=1,
            steps=[(None, RED), (0.95, ORANGE), (0.99, GREEN)],
            empty="no traffic",
        ),
        stat(
            (8, 0, 4, 3),
            "Oldest Due",
            "How long the oldest delivery that could be sent has been waiting for a worker."
            " Deliveries that their webhook holds back (a pause, a circuit, a rate) do not count."
            " Seconds are normal; minutes mean that workers are missing or stuck.",
            promql("max(webhookd_oldest_due_seconds)", instant=True),
            unit="s",
            decimals=0,
            steps=[(None, GREEN), (60, ORANGE), (300, RED)],
            empty="unknown",
        ),
        stat(
            (8, 3, 4, 3),
            "P99 Now",
            "99 of 100 attempts of the last 5 minutes took less. Below 2 s is the target, above "
            "5 s is critical.",
            promql(f"{P99_5M} >= 0", instant=True),
            unit="s",
            decimals=2,
            steps=[(None, GREEN), (2, ORANGE), (5, RED)],
            empty="no traffic",
        ),
        stat(
            (12, 0, 4, 3),
            "Workers Down",
            "Workers that Prometheus knows, but that cannot be scraped or report that they cannot"
            " deliver.",
            promql(f"count(up{{{OURS}}}) - (sum(worker_health_status) or vector(0))", instant=True),
            decimals=0,
            steps=[(None, GREEN), (1, RED)],
            empty="no worker known",
        ),
        stat(
            (12, 3, 4, 3),
            "Database",
            "Whether the workers' statements reach PostgreSQL; the worst worker counts.",
            promql("min(webhookd_database_up)", instant=True),
            steps=[(None, RED), (1, GREEN)],
            mappings=UP_OR_DOWN,
            empty="unknown",
        ),
        arranged(
            table(
                (16, 0, 8, 6),
                "Firing Alerts",
                "Alerts of webhookd's rules. A click on the name opens the runbook.",
                promql(FIRING_SINCE, table=True),
                [
                    column("alert", links=OF_ALERT),
                    column(
                        "severity",
                        cell="color-background",
                        width=100,
                        mappings=[
                            words(
                                {
                                    "critical": ("critical", RED),
                                    "warning": ("warning", ORANGE),
                                    "info": ("info", BLUE),
                                }
                            )
                        ],
                    ),
                    column("since", unit="dateTimeFromNow", width=160),
                ],
                empty="No alert is firing",
                sort="severity",  # critical comes first
            ),
            alertname="alert",
            severity="severity",
            Value="since",
        ),
        timeseries(
            (0, 6, 8, 8),
            "Delivery Rate",
            "Attempts a second, by result. An attempt that timed out counts as timeout only, not as"
            " failed.",
            [promql(f"sum by (status) ({ATTEMPTS})", "{{status}}")],
            label="deliveries/sec",
            min=0,
            stacked=True,
            overrides=STATUS_COLOURS,
            empty="no attempts",
        ),
        timeseries(
            (8, 6, 8, 8),
            "Failed Deliveries",
            "Attempts a second that did not deliver (most are retried). More than 0.5 a second,"
            " the line, is a problem.",
            [
                promql(f"sum({UNDELIVERED})", "all"),
                promql(
                    "sum by (status) "
                    f'(rate(webhook_deliveries_total{{status=~"failed|timeout",{CHOSEN}}}[5m]))',
                    "{{status}}",
                ),
            ],
            label="deliveries/sec",
            min=0,
            steps=[(None, GREEN), (0.5, RED)],
            overrides=[*STATUS_COLOURS, colour("all", PURPLE, width=2)],
            empty="no attempts",
        ),
        bars(
            (16, 6, 8, 8),
            "Webhooks Failing Most",
            "Attempts a second that did not deliver, in the last 5 minutes: the ten worst "
            "webhooks. Red from 0.5.",
            promql(
                f"sort_desc(topk(10, sum by (webhook_id) ({UNDELIVERED}) > 0))",
                "{{webhook_id}}",
                instant=True,
            ),
            unit="suffix:/s",
            decimals=2,
            min=0,
            steps=[(None, ORANGE), (0.5, RED)],
            empty="No failed attempt in 5 minutes",
        ),
        timeseries(
            (0, 14, 8, 8),
            "P99 Response Time",
            "Duration of the whole exchange, from DNS to the last byte: 99 of 100 attempts, and"
            " half of them, took less. The lines are the target, 2 s, and critical, 5 s.",
            [
                promql(
                    f"histogram_quantile(0.99, sum by (le) (rate({BUCKETS}[$__rate_interval])))",
                    "p99",
                ),
                promql(
                    f"histogram_quantile(0.50, sum by (le) (rate({BUCKETS}[$__rate_interval])))",
                    "p50",
                ),
            ],
            label="seconds",
            unit="s",
            min=0,
            steps=[(None, GREEN), (2, ORANGE), (5, RED)],
            overrides=[colour("p99", PURPLE, width=2), colour("p50", BLUE)],
            empty="no attempts",
        ),
        timeseries(
            (8, 14, 8, 8),
            "Queue by Cause",
            WHAT_CAUSES_MEAN,
            [promql("max by (cause) (webhookd_queue_depth_by_cause)", "{{cause}}")],
            label="deliveries",
            decimals=0,
            min=0,
            stacked=True,
            overrides=[colour(cause, shade) for cause, shade in CAUSES.items()],
            empty="no worker reports",
        ),
        bars(
            (16, 14, 8, 8),
            "Slowest Webhooks (P99)",
            "99 of 100 attempts of the last 5 minutes took less: the ten slowest webhooks. "
            "Orange from 2 s, red from 5 s.",
            promql(
                "sort_desc(topk(10, "
                'webhookd:delivery_duration_seconds:p99_5m{webhook_id=~"$webhook"} >= 0))',
                "{{webhook_id}}",
                instant=True,
            ),
            unit="s",
            decimals=2,
            min=0,
            steps=[(None, GREEN), (2, ORANGE), (5, RED)],
            empty="No attempt in 5 minutes",
        ),
    ],
)
