-- Count what waits, by what it waits for. Index-only reads of the three indexes of waiting rows; one worker does it for all.
WITH waiting AS (
    SELECT q.webhook_id, q.next_retry_at <= now() AS due, count(*) AS deliveries, min(q.next_retry_at) AS oldest
      FROM pggit.v_waiting_deliveries q
     GROUP BY q.webhook_id, q.next_retry_at <= now()
), by_cause AS (
    SELECT CASE WHEN w.webhook_id IS NULL THEN 'unregistered'
                WHEN NOT w.enabled THEN 'paused'
                WHEN NOT q.due THEN 'scheduled'
                ELSE coalesce(h.blocked_by, 'due') END AS cause,
           sum(q.deliveries) AS deliveries, min(q.oldest) AS oldest
      FROM waiting q
      LEFT JOIN pggit.webhooks w USING (webhook_id)
      LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
     GROUP BY 1
)
INSERT INTO pggit.queue_depth AS d (cause, deliveries, oldest_due_seconds, counted_at)
SELECT c.cause, coalesce(b.deliveries, 0),
       CASE WHEN c.cause = 'due' THEN extract(epoch FROM now() - b.oldest)::float8 END, now()
  FROM unnest(ARRAY['due', 'scheduled', 'paused', 'circuit', 'hold', 'rate', 'in_flight', 'unregistered']) AS c (cause)
  LEFT JOIN by_cause b USING (cause)
ON CONFLICT (cause) DO UPDATE
   SET deliveries = excluded.deliveries, oldest_due_seconds = excluded.oldest_due_seconds, counted_at = excluded.counted_at
