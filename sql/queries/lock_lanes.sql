-- Find lanes that have work and lock them; lanes that another worker holds are skipped. A lane has
-- work if its timer has come (index lane_runnable, and one each for new and for slow lanes) or if a
-- new row names it (index queue_new, one probe a lane). So the cost does not depend on how many
-- lanes are blocked, nor on how many rows wait in them, nor on how many slow lanes wait for slots.
-- %(cursor)s: look at new rows of webhooks after this one first; %(lanes)s: at most so many lanes
-- with a timer, %(fresh_lanes)s with new rows, %(new_lanes)s that are not measured yet,
-- %(slow_lanes)s slow ones;
-- %(known)s: these have new rows, too (see new_of_registered);
-- %(rows_from)s, %(lanes_from)s: epochs below which there is nothing to find (see
-- find_low_water_marks). Each row begins with the same four: now, the last webhook with
-- new rows that was looked at, how many there were, and those of them that have no lane (a worker
-- makes it).
WITH RECURSIVE fresh (webhook_id, n) AS (
    (SELECT q.webhook_id, 1
       FROM pggit.alert_delivery_queue q
      WHERE {new:q} AND q.webhook_id > %(cursor)s
        AND q.next_retry_at >= to_timestamp(%(rows_from)s)
      ORDER BY q.webhook_id
      LIMIT 1)
    UNION ALL
    SELECT x.webhook_id, f.n + 1
      FROM fresh f
     CROSS JOIN LATERAL (
        SELECT q.webhook_id
          FROM pggit.alert_delivery_queue q
         WHERE {new:q} AND q.webhook_id > f.webhook_id
           AND q.next_retry_at >= to_timestamp(%(rows_from)s)
         ORDER BY q.webhook_id
         LIMIT 1) x
     WHERE f.n < %(fresh_lanes)s
), locked_fresh AS (
    SELECT h.*
      FROM pggit.webhook_health_metrics h
     WHERE h.webhook_id = ANY (ARRAY(SELECT webhook_id FROM fresh) || %(known)s::bigint[])
       FOR NO KEY UPDATE SKIP LOCKED
), locked_runnable AS (
    SELECT h.*
      FROM pggit.webhook_health_metrics h
     WHERE h.runnable_at BETWEEN to_timestamp(%(lanes_from)s) AND now() AND h.slow IS FALSE
     ORDER BY h.runnable_at
     LIMIT %(lanes)s
       FOR NO KEY UPDATE SKIP LOCKED
), locked_new AS (
    SELECT h.*
      FROM pggit.webhook_health_metrics h
     WHERE h.runnable_at <= now() AND h.slow IS NULL
     ORDER BY h.runnable_at
     LIMIT %(new_lanes)s
       FOR NO KEY UPDATE SKIP LOCKED
), locked_slow AS (
    SELECT h.*
      FROM pggit.webhook_health_metrics h
     WHERE h.runnable_at <= now() AND h.slow IS TRUE
     ORDER BY h.runnable_at
     LIMIT %(slow_lanes)s
       FOR NO KEY UPDATE SKIP LOCKED
), timed AS (
    SELECT * FROM locked_runnable
    UNION ALL
    SELECT * FROM locked_new
    UNION ALL
    SELECT * FROM locked_slow
), locked AS (
    SELECT * FROM locked_fresh
    UNION ALL
    SELECT * FROM timed t WHERE t.webhook_id NOT IN (SELECT webhook_id FROM locked_fresh)
)
SELECT extract(epoch FROM now())::float8,
       coalesce((SELECT max(webhook_id) FROM fresh), 0),
       (SELECT count(*) FROM fresh),
       ARRAY(SELECT f.webhook_id FROM fresh f
              WHERE f.webhook_id <> ALL (ARRAY(
                    SELECT h.webhook_id FROM pggit.webhook_health_metrics h
                     WHERE h.webhook_id = ANY (ARRAY(SELECT webhook_id FROM fresh))))),
       {lane_columns:l}
  FROM (SELECT) one  -- a row comes back even if no lane was locked
  LEFT JOIN locked l ON true
