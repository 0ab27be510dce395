-- Take the admitted rows of the locked lanes, and say of every lane when to look at it next.
-- One array element a lane: *quota* rows may go; *blocked_by* and *runnable_at* hold once the quota
-- is used up (at once, if it is 0).
--
-- Runs after lock_lanes, in the same transaction but as a statement of its own: its snapshot is
-- younger than the locks. In one statement with them it would miss the rows that a record or an
-- earlier claim left in these lanes just before it got the lock, and then park the lane.
--
-- Rows are taken, the longest due first, until their bodies add up to %(body_bytes)s; the one that
-- exceeds that is still taken. A lane that kept rows for that reason is runnable at once (heavy).
--
-- A row whose body was not measured, or is too large, is never read here: it would
-- take gigabytes, or end the statement. It is returned as unmeasured. Its lane is looked at again
-- in a second, or once the row was measured (pggit.measure_bodies); a new row becomes a routed one.
-- New rows below %(rows_from)s, and routed ones below the lane's low-water mark, are not
-- looked for. A lane that gives less than its quota above its mark is runnable at once, too: the
-- next claim begins below it. After it, begin_probes marks the lanes whose row is a probe.
WITH lane AS (
    SELECT *
      FROM {admissions}
), pick AS (
    SELECT p.webhook_id, delivery_id,
           sum(bytes) OVER (ORDER BY next_retry_at, delivery_id ROWS UNBOUNDED PRECEDING) - bytes
               < %(body_bytes)s::bigint AS fits
      FROM lane l, LATERAL (
        SELECT webhook_id, delivery_id, next_retry_at,
               CASE WHEN {sendable} THEN body_bytes END AS bytes
          FROM (SELECT * FROM (
                    SELECT *
                      FROM pggit.alert_delivery_queue w
                     WHERE w.webhook_id = l.webhook_id AND {routed:w}
                       AND w.next_retry_at BETWEEN to_timestamp(l.mark) AND now()
                     ORDER BY next_retry_at, delivery_id
                     LIMIT l.quota
                       FOR NO KEY UPDATE SKIP LOCKED) w
                UNION ALL
                SELECT * FROM (
                    SELECT *
                      FROM pggit.alert_delivery_queue n
                     WHERE n.webhook_id = l.webhook_id AND {new:n}
                       AND n.next_retry_at BETWEEN to_timestamp(%(rows_from)s) AND now()
                     ORDER BY next_retry_at, delivery_id
                     LIMIT l.quota
                       FOR NO KEY UPDATE SKIP LOCKED) n) due
         ORDER BY next_retry_at, delivery_id
         LIMIT l.quota) p
     WHERE l.quota > 0
), claimed AS (
    UPDATE pggit.alert_delivery_queue
       SET delivery_status = 'sending', routed = true, worker_id = %(worker_id)s,
           leased_by = %(incarnation)s, lease_token = %(token)s,
           lease_until = now() + %(lease_s)s * interval '1 s'
     WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM pick WHERE fits))
    RETURNING next_retry_at, {delivery_expressions}
), parked AS (
    -- New rows that cannot go now leave queue_new, each once. Otherwise every later look would find
    -- them there again. From now on their lane's timer brings them up. Not too many at a time: the
    -- rows that can go wait for this statement.
    UPDATE pggit.alert_delivery_queue
       SET routed = true
     WHERE delivery_id = ANY (ARRAY(
        (SELECT delivery_id
          FROM lane l, LATERAL (
            SELECT delivery_id
              FROM pggit.alert_delivery_queue n
             WHERE n.webhook_id = l.webhook_id AND {new:n}
               AND n.next_retry_at >= CASE WHEN l.quota > 0 THEN now() + interval '1 us'
                                           ELSE to_timestamp(%(rows_from)s) END
             ORDER BY next_retry_at, delivery_id
             LIMIT 500
               FOR NO KEY UPDATE SKIP LOCKED) n
          LIMIT 500)
         UNION ALL
        SELECT delivery_id FROM pick WHERE fits IS NULL))
       AND NOT routed
), taken AS (
    SELECT l.webhook_id, count(c.webhook_id)::int AS n,
           l.webhook_id IN (SELECT webhook_id FROM pick WHERE NOT fits) AS heavy,
           l.webhook_id IN (SELECT webhook_id FROM pick WHERE fits IS NULL) AS late
      FROM lane l
      LEFT JOIN claimed c USING (webhook_id)
     GROUP BY l.webhook_id
), moved AS (
    UPDATE pggit.webhook_health_metrics h
       SET tokens = l.tokens - t.n,
           tokens_at = now(),
           in_flight = l.in_flight + t.n,
           blocked_by = CASE WHEN t.n >= l.quota THEN l.blocked_by END,
           runnable_at = CASE WHEN t.heavy THEN now()
                              WHEN t.late THEN now() + interval '1 s'
                              WHEN t.n >= l.quota THEN to_timestamp(l.runnable_at)
                              WHEN l.mark > '-Infinity' THEN now()
                              ELSE least((SELECT min(next_retry_at)
                                            FROM pggit.alert_delivery_queue w
                                           WHERE w.webhook_id = l.webhook_id AND {routed:w}
                                             AND next_retry_at > now()),
                                         (SELECT min(next_retry_at)
                                            FROM pggit.alert_delivery_queue n
                                           WHERE n.webhook_id = l.webhook_id AND {new:n}
                                             AND next_retry_at > now()))
                         END
      FROM lane l
      JOIN taken t USING (webhook_id)
     -- The list has the rows looked up by their key. With the join alone, a planner that believes
     -- the table to be nearly empty would read all of it.
     WHERE h.webhook_id = ANY (%(webhook_ids)s)
       AND h.webhook_id = l.webhook_id
)
SELECT t.heavy, extract(epoch FROM c.next_retry_at)::float8,
       ARRAY(SELECT delivery_id FROM pick WHERE fits IS NULL), {delivery_columns:c}
  FROM taken t
  LEFT JOIN claimed c USING (webhook_id)
 -- What is due longest goes to the senders first; the order of a hash join would mix that up.
 ORDER BY c.next_retry_at, c.delivery_id
