"""The dashboard "PostgreSQL Queue & Health": everything from the database, without Prometheus."""

from monitoring.grafana.frame import (
    CAUSES,
    CHOSEN_SQL,
    HEALTH,
    OF_WEBHOOK,
    STATUS_COLOURS,
    WHAT_CAUSES_MEAN,
    WORKER_SQL,
    dashboard,
    database_variables,
)
from monitoring.grafana.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    barchart,
    bars,
    by_row,
    colour,
    column,
    pie,
    sql,
    stat,
    table,
    timeseries,
    words,
)

DASHBOARD = dashboard(
    "webhookd-postgresql",
    "PostgreSQL Queue & Health",
    "What the database itself knows. Needs no Prometheus.",
    database_variables(),
    [
        stat(
            (0, 0, 12, 3),
            "Deliveries by Status",
            "All deliveries in the queue table. One that is being sent counts as pending on its "
            "first attempt, then as retrying.",
            sql(
                """
                SELECT pending_count AS "pending", retrying_count AS "retrying",
                       delivered_count AS "delivered", failed_count AS "failed"
                  FROM pggit.count_pending_by_status()
                """
            ),
            background=False,
            decimals=0,
            unit="locale",
            steps=[(None, BLUE)],
            empty="no answer",
        ),
        stat(
            (0, 3, 4, 3),
            "Oldest Due",
            "How long the oldest delivery that could be sent had been waiting for a worker when the"
            " queue was last counted.",
            sql(
                "SELECT coalesce(max(oldest_due_seconds), 0) AS oldest_due"
                " FROM pggit.queue_depth WHERE cause = 'due'"
            ),
            unit="s",
            decimals=0,
            steps=[(None, GREEN), (60, ORANGE), (300, RED)],
            empty="never counted",
        ),
        stat(
            (4, 3, 4, 3),
            "Queue Counted",
            "How long ago a worker counted the queue; workers take turns, every few seconds. If it"
            " is longer ago, no worker is alive, none reaches the database, or counting takes long"
            " (millions of deliveries wait, or an old snapshot is held).",
            sql(
                """
                SELECT greatest(0, extract(epoch FROM now() - counted_at))::float8 AS counted_ago
                  FROM pggit.queue_depth
                 ORDER BY counted_at DESC
                 LIMIT 1
                """
            ),
            unit="s",
            decimals=0,
            steps=[(None, GREEN), (20, ORANGE), (60, RED)],
            empty="never counted",
        ),
        stat(
            (8, 3, 4, 3),
            "Failed Attempts (1 h)",
            "Attempts of the last hour that did not deliver.",
            sql(
                "SELECT coalesce(sum(failures_1h), 0) AS failures_1h"
                " FROM pggit.v_webhook_health_dashboard"
            ),
            background=False,
            decimals=0,
            unit="locale",
            steps=[(None, GREEN), (1, ORANGE)],
            empty="0",
        ),
        by_row(
            bars(
                (12, 0, 12, 6),
                "Queue by Cause",
                WHAT_CAUSES_MEAN,
                sql(
                    "SELECT cause, deliveries FROM pggit.queue_depth"
                    " ORDER BY deliveries DESC, cause"
                ),
                decimals=0,
                min=0,
                overrides=[colour(cause, shade) for cause, shade in CAUSES.items()],
                empty="never counted",
            ),
            "cause",
            "deliveries",
        ),
        by_row(
            pie(
                (0, 6, 6, 8),
                "Webhook Status Distribution",
                "Webhooks by health. unknown: no attempt yet.",
                sql(
                    "SELECT health_status, COUNT(*) as count\n"
                    "FROM pggit.webhook_health_metrics\nGROUP BY health_status"
                ),
                overrides=[colour(status, shade) for status, shade in HEALTH.items()],
                empty="No webhook yet",
            ),
            "health_status",
            "count",
        ),
        table(
            (6, 6, 10, 8),
            "Degraded Webhooks",
            "Webhooks whose last attempt failed, the longest series of failures first.",
            sql(
                f"""
                SELECT webhook_id, health_status, consecutive_failures,
                       ROUND(100.0 * successful_deliveries /
                             NULLIF(total_deliveries, 0), 2) as success_rate_pct
                FROM pggit.webhook_health_metrics
                WHERE health_status IN ('degraded', 'unavailable')
                  AND {CHOSEN_SQL}
                ORDER BY consecutive_failures DESC
                LIMIT 100
                """
            ),
            [
                column("webhook_id", links=OF_WEBHOOK),
                column(
                    "health_status",
                    cell="color-background",
                    mappings=[words({status: (status, shade) for status, shade in HEALTH.items()})],
                ),
                column(
                    "success_rate_pct",
                    cell="color-text",
                    unit="percent",
                    steps=[(None, RED), (95, ORANGE), (99, GREEN)],
                ),
            ],
            empty="Every webhook is healthy",
        ),
        barchart(
            (16, 6, 8, 8),
            "Average Response Time by Webhook",
            "The mean over all attempts, since the first; the ten slowest webhooks. Orange from "
            "2 s, red from 5 s.",
            sql(
                # As text: Grafana's bar chart needs text on its axis.
                f"""
                SELECT webhook_id::text AS webhook_id, ROUND(avg_response_time_ms, 1) as avg_ms
                FROM pggit.webhook_health_metrics
                WHERE total_deliveries > 0
                  AND {CHOSEN_SQL}
                ORDER BY avg_response_time_ms DESC
                LIMIT 10
                """
            ),
            x="webhook_id",
            unit="ms",
            decimals=1,
            min=0,
            steps=[(None, GREEN), (2000, ORANGE), (5000, RED)],
            empty="No attempt yet",
        ),
        timeseries(
            (0, 14, 8, 8),
            "Attempts by Minute",
            "What the workers recorded about themselves; kept for 25 hours.",
            [
                sql(
                    f"""
                SELECT minute AS time, sum(delivered) AS delivered, sum(failed) AS failed,
                       sum(timeouts) AS timeout
                  FROM pggit.worker_minutes
                 WHERE $__timeFilter(minute) AND {WORKER_SQL}
                 GROUP BY minute
                 ORDER BY minute
                """,
                    time_series=True,
                )
            ],
            label="attempts/min",
            decimals=0,
            min=0,
            stacked=True,
            bars=True,
            overrides=STATUS_COLOURS,
            empty="no attempts",
        ),
        table(
            (8, 14, 8, 8),
            "Webhooks Held Back",
            "Why nothing is sent to a webhook, and for how long. `webhookd webhook resume` resumes"
            " a paused one, `webhookd webhook add URL --id` registers an unregistered one, and"
            " `webhookd doctor` says how to correct a held one.",
            sql(
                f"""
                SELECT h.webhook_id,
                       CASE WHEN w.webhook_id IS NULL THEN 'not registered'
                            WHEN NOT w.enabled
                            THEN 'paused' || coalesce(': ' || w.disabled_reason, '')
                            WHEN h.blocked_reason IS NOT NULL
                            THEN 'held: ' || h.blocked_reason
                            WHEN h.circuit_state <> 'closed'
                            THEN 'circuit ' || replace(h.circuit_state, '_', ' ')
                            ELSE 'Retry-After' END AS held_back,
                       CASE WHEN w.enabled AND h.blocked_reason IS NULL
                            THEN greatest(0, extract(
                                epoch FROM greatest(h.circuit_until, h.hold_until) - now()))::float8
                       END AS for_another,
                       h.consecutive_failures AS failures, h.in_flight
                  FROM pggit.webhook_health_metrics h
                  LEFT JOIN pggit.webhooks w USING (webhook_id)
                 WHERE (NOT w.enabled OR h.circuit_state <> 'closed' OR h.hold_until > now()
                        OR h.blocked_by = 'unregistered' OR h.blocked_reason IS NOT NULL)
                   AND h.{CHOSEN_SQL}
                 ORDER BY h.consecutive_failures DESC, h.webhook_id
                 LIMIT 100
                """
            ),
            [
                column("webhook_id", links=OF_WEBHOOK, width=100),
                column("held_back", width=180),
                column(
                    "for_another", unit="s", decimals=0, empty="until it is resumed or registered"
                ),
            ],
            empty="No webhook is held back",
        ),
        table(
            (16, 14, 8, 8),
            "Workers",
            "Each worker reports every few seconds that it is alive; red from 20 s without a"
            " report. A worker that was stopped in order is not listed.",
            sql(
                f"""
                SELECT worker_id,
                       greatest(0, extract(epoch FROM now() - seen_at))::float8 AS silent_for,
                       extract(epoch FROM now() - started_at)::float8 AS up_for, host, pid, version
                  FROM pggit.workers
                 WHERE {WORKER_SQL}
                 ORDER BY seen_at, worker_id
                 LIMIT 100
                """
            ),
            [
                column(
                    "silent_for",
                    cell="color-background",
                    unit="s",
                    decimals=0,
                    steps=[(None, GREEN), (10, ORANGE), (20, RED)],
                ),
                column("up_for", unit="s", decimals=0),
                column("pid"),
            ],
            empty="NO WORKER IS ALIVE",
        ),
        table(
            (0, 22, 12, 8),
            "Failures of the Last Hour",
            "The newest 10,000 failed attempts of the last hour, by webhook and answer. Without a"
            " status there was no answer (timeout, refused, DNS, TLS, ...). `webhookd delivery show"
            " ID` prints the reason.",
            sql(
                f"""
                SELECT webhook_id, http_status, count(*) AS attempts, max(created_at) AS last_at,
                       max(delivery_id) AS newest_delivery_id
                  FROM (SELECT webhook_id, http_status, created_at, delivery_id
                          FROM pggit.alert_delivery_log
                         WHERE event_type IN ('retrying', 'failed')
                           AND created_at > now() - interval '1 hour'
                           AND {CHOSEN_SQL}
                         ORDER BY created_at DESC
                         LIMIT 10000) newest
                 GROUP BY webhook_id, http_status
                 ORDER BY attempts DESC
                 LIMIT 100
                """
            ),
            [
                column("webhook_id", links=OF_WEBHOOK),
                column("http_status", empty="no answer"),
                column("newest_delivery_id"),
            ],
            empty="No failed attempt in an hour",
        ),
        table(
            (12, 22, 12, 8),
            "Newest Failures",
            "The newest failed attempts of the last hour. retrying: it will be retried.",
            sql(
                f"""
                SELECT created_at, webhook_id, delivery_id, event_type, http_status,
                       coalesce(round(response_time_ms::numeric, 1), 0) AS ms, worker_id
                  FROM pggit.alert_delivery_log
                 WHERE event_type IN ('retrying', 'failed')
                   AND created_at > now() - interval '1 hour'
                   AND {CHOSEN_SQL}
                 ORDER BY created_at DESC
                 LIMIT 50
                """
            ),
            [
                column("webhook_id", links=OF_WEBHOOK),
                column("delivery_id"),
                column(
                    "event_type",
                    cell="color-text",
                    mappings=[words({"failed": ("failed", RED), "retrying": ("retrying", ORANGE)})],
                ),
                column("http_status", empty="no answer"),
            ],
            empty="No failed attempt in an hour",
        ),
    ],
)
