-- Fail up to %(limit)s deliveries that have waited for longer than %(after_s)s seconds. The lanes
-- looked at are the next %(lanes)s with waiting rows behind webhook %(behind)s; returns the last of
-- them (NULL: there are no more) and how many rows failed. A row that is being sent, or that
-- another transaction has locked, is left alone.
--
-- A delivery waits since it was created. One that was scheduled, or made to wait again by an
-- operator, waits since its time came, or since the first attempt after that: its first attempt is
-- longer than %(after_s)s after its creation, which cannot happen otherwise.
--
-- One branch for each index that holds waiting rows, so that only rows to be failed are read. The
-- time is written in each condition: taken from a table of one row, it would be compared with every
-- row of an index.
WITH RECURSIVE lane AS (
    (SELECT %(behind)s::bigint AS webhook_id, 0 AS n)
    UNION ALL
    SELECT least((SELECT w.webhook_id
                    FROM pggit.alert_delivery_queue w
                   WHERE w.webhook_id > l.webhook_id AND {routed:w}
                   ORDER BY w.webhook_id, w.next_retry_at, w.delivery_id
                   LIMIT 1),
                 (SELECT n.webhook_id
                    FROM pggit.alert_delivery_queue n
                   WHERE n.webhook_id > l.webhook_id AND {new:n}
                   ORDER BY n.webhook_id, n.next_retry_at, n.delivery_id
                   LIMIT 1)), l.n + 1
      FROM lane l
     WHERE l.webhook_id IS NOT NULL AND l.n < %(lanes)s::int
), old AS (
    (SELECT p.delivery_id
       FROM lane l, LATERAL (
            (SELECT w.delivery_id
               FROM pggit.alert_delivery_queue w
              WHERE w.webhook_id = l.webhook_id AND {routed:w}
                AND w.next_retry_at <= {give_up_before} AND {gave_up:w}
              ORDER BY w.next_retry_at, w.delivery_id
              LIMIT %(limit)s)
             UNION ALL
            (SELECT n.delivery_id
               FROM pggit.alert_delivery_queue n
              WHERE n.webhook_id = l.webhook_id AND {new:n}
                AND n.next_retry_at <= {give_up_before} AND {gave_up:n}
              ORDER BY n.next_retry_at, n.delivery_id
              LIMIT %(limit)s)) p
      WHERE l.n > 0
      LIMIT %(limit)s)
    UNION
    (SELECT r.delivery_id
       FROM pggit.alert_delivery_queue r
      WHERE r.delivery_status = 'retrying' AND r.created_at <= {give_up_before} AND {gave_up:r}
      ORDER BY r.created_at
      LIMIT %(limit)s)
    UNION
    (SELECT s.delivery_id
       FROM pggit.alert_delivery_queue s
      WHERE s.delivery_status IN ('pending', 'retrying') AND s.leases_lost >= 3
        AND s.next_retry_at <= {give_up_before} AND {gave_up:s}
      ORDER BY s.next_retry_at
      LIMIT %(limit)s)
), locked AS MATERIALIZED (
    SELECT q.delivery_id
      FROM pggit.alert_delivery_queue q
     WHERE q.delivery_id = ANY (ARRAY(SELECT delivery_id FROM old))
       AND q.delivery_status IN ('pending', 'retrying')
       AND {gave_up:q}
     LIMIT %(limit)s
       FOR NO KEY UPDATE OF q SKIP LOCKED
), failed AS (
    -- The schema's triggers count the row as finished and note when it ended.
    UPDATE pggit.alert_delivery_queue
       SET delivery_status = 'failed'
     WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM locked))
    RETURNING delivery_id, webhook_id
), logged AS (
    INSERT INTO pggit.alert_delivery_log
           (delivery_id, webhook_id, event_type, event_details, worker_id)
    SELECT delivery_id, webhook_id, 'failed', jsonb_build_object('reason', %(reason)s::text),
           %(worker_id)s
      FROM failed
)
SELECT (SELECT webhook_id FROM lane ORDER BY n DESC LIMIT 1), (SELECT count(*) FROM failed)
