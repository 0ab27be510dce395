-- Count what waits, by what it waits for. One worker does it for all. Each index of waiting rows is
-- read once, and grouped in its own order: to group the three together, or by due and not due as
-- well, takes twice as long.
WITH waiting AS (
    SELECT q.webhook_id, count(*) AS deliveries,
           count(*) FILTER (WHERE q.next_retry_at <= now()) AS due, min(q.next_retry_at) AS oldest
      FROM pggit.alert_delivery_queue q
     WHERE {new:q}
     GROUP BY q.webhook_id
     UNION ALL
    SELECT q.webhook_id, count(*), count(*) FILTER (WHERE q.next_retry_at <= now()),
           min(q.next_retry_at)
      FROM pggit.alert_delivery_queue q
     WHERE {routed:q}
     GROUP BY q.webhook_id
     UNION ALL
    SELECT q.webhook_id, count(*), count(*) FILTER (WHERE q.next_retry_at <= now()),
           min(q.next_retry_at)
      FROM pggit.alert_delivery_queue q
     WHERE q.routed AND {quarantined:q}
     GROUP BY q.webhook_id
), by_cause AS (
    SELECT c.cause, sum(c.deliveries) AS deliveries, min(c.oldest) AS oldest
      FROM waiting q
      LEFT JOIN pggit.webhooks w USING (webhook_id)
      LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
     CROSS JOIN LATERAL (SELECT {barred:w}) AS b (barred)
     CROSS JOIN LATERAL (VALUES
        (coalesce(b.barred, h.blocked_by, 'due'), q.due, CASE WHEN q.due > 0 THEN q.oldest END),
        (coalesce(b.barred, 'scheduled'), q.deliveries - q.due, NULL)
     ) AS c (cause, deliveries, oldest)
     GROUP BY c.cause
)
INSERT INTO pggit.queue_depth AS d (cause, deliveries, oldest_due_seconds, counted_at)
SELECT c.cause, coalesce(b.deliveries, 0),
       CASE WHEN c.cause = 'due'
            THEN extract(epoch FROM now() - nullif(b.oldest, '-infinity'))::float8 END,
       clock_timestamp()  -- when it is known: a count may take longer than it stays fresh
  FROM unnest({queue_causes}) AS c (cause)
  LEFT JOIN by_cause b USING (cause)
ON CONFLICT (cause) DO UPDATE
   SET deliveries = excluded.deliveries, oldest_due_seconds = excluded.oldest_due_seconds,
       counted_at = excluded.counted_at
