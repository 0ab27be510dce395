"""The dashboard "Worker Health": does every worker work, and what holds webhooks back?"""

from monitoring.grafana.frame import CHOSEN, OURS, UP_OR_DOWN, WORKER, dashboard, metrics_variables
from monitoring.grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    bars,
    colour,
    promql,
    stat,
    timeseries,
    words,
)

PHASES = f"webhookd_http_phase_seconds_bucket{{{WORKER}}}"

DASHBOARD = dashboard(
    "webhookd-workers",
    "Worker Health",
    "Does every worker work, and what holds webhooks back?",
    metrics_variables(),
    [
        stat(
            (0, 0, 12, 6),
            "Worker Status",
            "healthy: the worker can deliver. DOWN: it reports that it cannot, or it cannot be"
            " scraped.",
            # A dead process exports nothing; then `up` of its target is 0.
            promql(
                f"sort(min by (worker_id) (worker_health_status{{{WORKER}}} or on (job, "
                f"instance) (up{{{OURS},{WORKER}}} == 0)))",
                "{{worker_id}}",
                instant=True,
            ),
            steps=[(None, RED), (1, GREEN)],
            empty="no worker known",
            mappings=[words({"0": ("DOWN", RED), "1": ("healthy", GREEN)})],
        ),
        stat(
            (12, 0, 4, 3),
            "Database",
            "Whether the workers' statements reach PostgreSQL; the worst worker counts.",
            promql(f"min(webhookd_database_up{{{WORKER}}})", instant=True),
            steps=[(None, RED), (1, GREEN)],
            mappings=UP_OR_DOWN,
            empty="unknown",
        ),
        stat(
            (16, 0, 4, 3),
            "Listeners",
            "Whether every worker receives notifications of new deliveries. Without them deliveries"
            " start late.",
            promql(f"min(webhookd_listener_connected{{{WORKER}}})", instant=True),
            steps=[(None, RED), (1, GREEN)],
            mappings=UP_OR_DOWN,
            empty="unknown",
        ),
        stat(
            (20, 0, 4, 3),
            "Outstanding",
            "Deliveries that are claimed and not yet recorded, of all workers.",
            promql(f"sum(webhookd_deliveries_outstanding{{{WORKER}}})", instant=True),
            background=False,
            decimals=0,
            steps=[(None, BLUE)],
            empty="unknown",
        ),
        stat(
            (12, 3, 4, 3),
            "Lost Leases (1 h)",
            "Deliveries that a worker held longer than its lease: they may have been sent twice."
            " Normally 0.",
            promql(f"sum(increase(webhookd_lost_leases_total{{{WORKER}}}[1h]))", instant=True),
            decimals=0,
            steps=[(None, GREEN), (1, RED)],
            empty="unknown",
        ),
        stat(
            (16, 3, 4, 3),
            "Given Back (1 h)",
            "Claimed deliveries that went back to the queue without an attempt: a circuit opened"
            " meanwhile, or a worker drained.",
            promql(f"sum(increase(webhookd_given_back_total{{{WORKER}}}[1h]))", instant=True),
            background=False,
            decimals=0,
            steps=[(None, BLUE)],
            empty="unknown",
        ),
        stat(
            (20, 3, 4, 3),
            "Versions Running",
            "More than one only during an upgrade.",
            promql(f"count(count by (version) (webhookd_build_info{{{WORKER}}}))", instant=True),
            decimals=0,
            steps=[(None, GREEN), (2, ORANGE)],
            empty="unknown",
        ),
        bars(
            (0, 6, 8, 8),
            "Rate Limit Hits (5 min)",
            "Claims in the last 5 minutes that left due deliveries because the rate was used up:"
            " the ten webhooks with most. Below 10 a minute is the target, above 100 a minute is"
            " critical.",
            promql(
                "sort_desc(topk(10, sum by (webhook_id) "
                f"(increase(rate_limit_hits_total{{{CHOSEN}}}[5m])) > 0))",
                "{{webhook_id}}",
                instant=True,
            ),
            decimals=0,
            min=0,
            steps=[(None, GREEN), (50, ORANGE), (500, RED)],
            empty="No rate limit hit in 5 minutes",
        ),
        bars(
            (8, 6, 8, 8),
            "Circuit Breaker Opens (1 h)",
            "How often each webhook's circuit opened in the last hour, over all workers, failed"
            " probes included. None is the target, more than 2 is critical.",
            promql(
                "sort_desc(topk(10, "
                'webhookd:circuit_opens:increase1h{webhook_id=~"$webhook"} > 0))',
                "{{webhook_id}}",
                instant=True,
            ),
            decimals=0,
            min=0,
            steps=[(None, ORANGE), (2.5, RED)],
            empty="No circuit opened in an hour",
        ),
        timeseries(
            (16, 6, 8, 8),
            "Attempts by Worker",
            "Attempts a second. With little traffic one of them may do most of it.",
            [
                promql(
                    "sum by (worker_id) "
                    f"(rate(webhook_deliveries_total{{{CHOSEN}}}[$__rate_interval]))",
                    "{{worker_id}}",
                )
            ],
            label="attempts/sec",
            min=0,
            stacked=True,
            empty="no attempts",
        ),
        timeseries(
            (0, 14, 8, 8),
            "Outstanding Deliveries",
            "Deliveries that are claimed and not yet recorded, by worker, and the present number of"
            " threads for sending in all workers.",
            [
                promql(
                    f"sum by (worker_id) (webhookd_deliveries_outstanding{{{WORKER}}})",
                    "{{worker_id}}",
                ),
                promql(f"sum(webhookd_sender_threads{{{WORKER}}})", "threads"),
            ],
            label="deliveries",
            decimals=0,
            min=0,
            overrides=[colour("threads", GREY, width=2)],
            empty="no worker reports",
        ),
        timeseries(
            (8, 14, 8, 8),
            "Claims and Records",
            "Statements a second, and deliveries that they carried. Refused: another worker had "
            "taken the delivery over.",
            [
                promql(f"sum(rate(webhookd_{name}_total{{{WORKER}}}[$__rate_interval]))", legend)
                for name, legend in (
                    ("claimed_deliveries", "deliveries claimed"),
                    ("recorded_results", "results recorded"),
                    ("claims", "claims"),
                    ("records", "records"),
                    ("refused_results", "results refused"),
                )
            ],
            label="a second",
            min=0,
            overrides=[colour("results refused", RED, width=2)],
            empty="no worker reports",
        ),
        timeseries(
            (16, 14, 8, 8),
            "Wakeups",
            "What woke the dispatchers, a second. A busy queue needs hardly any notify.",
            [
                promql(
                    f"sum by (reason) (rate(webhookd_wakeups_total{{{WORKER}}}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            label="wakeups/sec",
            min=0,
            stacked=True,
            empty="no worker reports",
        ),
        timeseries(
            (0, 22, 8, 8),
            "HTTP Connections",
            "Exchanges a second over a new and over a kept connection. If most are new, receivers"
            " close connections, or are rarely used.",
            [
                promql(
                    "sum by (kind) "
                    f"(rate(webhookd_http_connections_total{{{WORKER}}}[$__rate_interval]))",
                    "{{kind}}",
                )
            ],
            label="exchanges/sec",
            min=0,
            stacked=True,
            overrides=[colour("reused", GREEN), colour("opened", BLUE)],
            empty="no exchanges",
        ),
        timeseries(
            (8, 22, 8, 8),
            "HTTP Phases (P99)",
            "Duration of each phase: DNS, connect, TLS, and from the request to the first byte of"
            " the answer. 99 of 100 took less.",
            [
                promql(
                    "histogram_quantile(0.99, sum by (phase, le) "
                    f"(rate({PHASES}[$__rate_interval])))",
                    "{{phase}}",
                )
            ],
            label="seconds",
            unit="s",
            min=0,
            empty="none",
        ),
        timeseries(
            (16, 22, 8, 8),
            "Record Batch Size",
            "How many results a record statement carried: half, and 99 of 100, carried fewer. Large"
            " batches mean that commits are slow.",
            [
                promql(
                    f"histogram_quantile({quantile},"
                    " sum by (le) "
                    f"(rate(webhookd_record_batch_size_bucket{{{WORKER}}}[$__rate_interval])))",
                    legend,
                )
                for quantile, legend in (("0.99", "p99"), ("0.50", "p50"))
            ],
            label="results",
            min=0,
            decimals=1,
            overrides=[colour("p99", PURPLE, width=2), colour("p50", BLUE)],
            empty="nothing recorded",
        ),
    ],
)
