-- The lanes in which deliveries wait, by what they wait for. One entry of each index is read a
-- lane, however many rows wait.
WITH RECURSIVE new (webhook_id, oldest, routed) AS (
    (SELECT q.webhook_id, q.next_retry_at, false
       FROM pggit.alert_delivery_queue q
      WHERE {new:q}
      ORDER BY q.webhook_id, q.next_retry_at LIMIT 1)
    UNION ALL
    SELECT x.webhook_id, x.next_retry_at, false
      FROM new n
     CROSS JOIN LATERAL (
        SELECT q.webhook_id, q.next_retry_at
          FROM pggit.alert_delivery_queue q
         WHERE {new:q} AND q.webhook_id > n.webhook_id
         ORDER BY q.webhook_id, q.next_retry_at LIMIT 1) x
), known (webhook_id, oldest, routed) AS (
    (SELECT q.webhook_id, q.next_retry_at, true
       FROM pggit.alert_delivery_queue q
      WHERE {routed:q}
      ORDER BY q.webhook_id, q.next_retry_at LIMIT 1)
    UNION ALL
    SELECT x.webhook_id, x.next_retry_at, true
      FROM known k
     CROSS JOIN LATERAL (
        SELECT q.webhook_id, q.next_retry_at
          FROM pggit.alert_delivery_queue q
         WHERE {routed:q} AND q.webhook_id > k.webhook_id
         ORDER BY q.webhook_id, q.next_retry_at LIMIT 1) x
), lane AS (
    SELECT webhook_id, min(oldest) AS oldest, min(oldest) FILTER (WHERE routed) AS oldest_routed
      FROM (SELECT * FROM new UNION ALL SELECT * FROM known) both_indexes
     GROUP BY webhook_id
), judged AS (
    SELECT l.webhook_id, l.oldest,
           CASE WHEN w.webhook_id IS NULL AND NOT {possible_id:l} THEN 'impossible'
                WHEN NOT w.enabled AND w.disabled_reason = {gone_reason} THEN 'gone'
                WHEN {barred:w} IS NOT NULL THEN {barred:w}
                WHEN h.blocked_reason IS NOT NULL THEN 'blocked'  -- another check reports it
                -- Workers know of a row, but of no time at which to look at it.
                WHEN l.oldest_routed < now() - interval '60 seconds' AND h.runnable_at IS NULL
                     THEN 'parked'
                WHEN l.oldest > now() THEN 'scheduled'
                WHEN h.blocked_by IS NULL
                     OR coalesce(h.runnable_at, '-infinity')
                        < now() - %(overdue_s)s * interval '1 second' THEN 'due'
                ELSE 'blocked' END AS cause
      FROM lane l
      LEFT JOIN pggit.webhooks w USING (webhook_id)
      LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
)
SELECT cause, count(*) AS webhooks,
       (array_agg(webhook_id ORDER BY oldest, webhook_id))[1:10] AS webhook_ids,
       extract(epoch FROM now())::float8 - extract(epoch FROM min(oldest))::float8 AS oldest_s
  FROM judged
 GROUP BY cause
