-- Epochs below which there is nothing to find, asked from the last such marks on: the earliest new
-- row and the earliest timer of a fast lane, or what now() was %(margin_s)s ago, whichever is
-- earlier. A transaction that is older than that may still commit something below them. New and
-- slow lanes have no mark: they wait for slots with timers in the past, which would hold it back.
-- And how many webhooks have new rows: each took a probe.
WITH RECURSIVE first (webhook_id, next_retry_at) AS (
    (SELECT q.webhook_id, q.next_retry_at
       FROM pggit.alert_delivery_queue q
      WHERE {new:q} AND q.next_retry_at >= to_timestamp(%(rows_from)s)
      ORDER BY q.webhook_id, q.next_retry_at
      LIMIT 1)
    UNION ALL
    SELECT x.webhook_id, x.next_retry_at
      FROM first f
     CROSS JOIN LATERAL (
        SELECT q.webhook_id, q.next_retry_at
          FROM pggit.alert_delivery_queue q
         WHERE {new:q} AND q.webhook_id > f.webhook_id
           AND q.next_retry_at >= to_timestamp(%(rows_from)s)
         ORDER BY q.webhook_id, q.next_retry_at
         LIMIT 1) x
), recent (at) AS (
    SELECT now() - %(margin_s)s * interval '1 second'
)
SELECT extract(epoch FROM least(recent.at, (SELECT min(next_retry_at) FROM first)))::float8,
       extract(epoch FROM least(recent.at, (SELECT h.runnable_at
                                              FROM pggit.webhook_health_metrics h
                                             WHERE h.runnable_at >= to_timestamp(%(lanes_from)s)
                                               AND h.slow IS FALSE
                                             ORDER BY h.runnable_at
                                             LIMIT 1)))::float8,
       (SELECT count(*) FROM first)
  FROM recent
