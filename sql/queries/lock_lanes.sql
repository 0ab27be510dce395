-- Find lanes that have work and lock them; lanes that another worker holds are skipped.
-- %(cursor)s: look at new rows of webhooks after this one first; %(lanes)s: at most so many of each kind.
-- A lane has work if its timer has come (lane_runnable) or if a new row names it (queue_new, one probe a lane). Both are looked
-- for from %(rows_floor)s and %(lanes_floor)s on, epochs below which there is nothing (find_floors).
WITH RECURSIVE fresh (webhook_id, n) AS (
    (SELECT q.webhook_id, 1
       FROM pggit.alert_delivery_queue q
      WHERE NOT q.routed AND q.delivery_status IN ('pending', 'retrying') AND q.webhook_id > %(cursor)s
        AND q.next_retry_at >= to_timestamp(%(rows_floor)s)
      ORDER BY q.webhook_id
      LIMIT 1)
    UNION ALL
    SELECT x.webhook_id, f.n + 1
      FROM fresh f
     CROSS JOIN LATERAL (
        SELECT q.webhook_id
          FROM pggit.alert_delivery_queue q
         WHERE NOT q.routed AND q.delivery_status IN ('pending', 'retrying') AND q.webhook_id > f.webhook_id
           AND q.next_retry_at >= to_timestamp(%(rows_floor)s)
         ORDER BY q.webhook_id
         LIMIT 1) x
     WHERE f.n < %(lanes)s
), locked_fresh AS (
    SELECT h.*
      FROM pggit.webhook_health_metrics h
     WHERE h.webhook_id = ANY (ARRAY(SELECT webhook_id FROM fresh))
       FOR NO KEY UPDATE SKIP LOCKED
), locked_runnable AS (
    SELECT h.*
      FROM pggit.webhook_health_metrics h
     WHERE h.runnable_at BETWEEN to_timestamp(%(lanes_floor)s) AND now()
     ORDER BY h.runnable_at
     LIMIT %(lanes)s
       FOR NO KEY UPDATE SKIP LOCKED
), locked AS (
    SELECT * FROM locked_fresh
    UNION ALL
    SELECT * FROM locked_runnable r WHERE r.webhook_id NOT IN (SELECT webhook_id FROM locked_fresh)
)
SELECT l.webhook_id, l.circuit_state, l.circuit_epoch, l.consecutive_failures,
       extract(epoch FROM l.circuit_until)::float8, extract(epoch FROM l.hold_until)::float8,
       l.tokens, extract(epoch FROM l.tokens_at)::float8, l.in_flight,
       extract(epoch FROM l.runnable_at)::float8, l.blocked_by, l.health_status,
       extract(epoch FROM now())::float8, coalesce((SELECT max(webhook_id) FROM fresh), 0), (SELECT count(*) FROM fresh),
       -- Webhooks without a lane, since nobody registered them.
       ARRAY(SELECT f.webhook_id FROM fresh f
              WHERE f.webhook_id <> ALL (ARRAY(SELECT h.webhook_id FROM pggit.webhook_health_metrics h
                                                WHERE h.webhook_id = ANY (ARRAY(SELECT webhook_id FROM fresh)))))
  FROM (SELECT) one  -- a row comes back even if no lane was locked
  LEFT JOIN locked l ON true
