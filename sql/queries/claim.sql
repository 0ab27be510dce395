-- Take the admitted rows of the locked lanes, and say of every lane when it is to be looked at next.
-- One array element a lane: quota rows may go; blocked_by and runnable_at hold once the quota is used up (at once, if it is 0).
-- Rows are taken, the longest due first, until their bodies come to %(body_bytes)s; the one that passes that is still taken. A lane
-- that had to keep rows for it is runnable at once (heavy). New rows below %(rows_floor)s, and waiting ones below the lane's floor,
-- are not looked for; a lane that has less than its quota above its floor is runnable at once, too.
-- Runs after lock_lanes in the same transaction: its snapshot is younger than the locks, so no row that a record or an earlier
-- claim left in these lanes is missed.
WITH lane AS (
    SELECT *
      FROM unnest(%(webhook_ids)s::bigint[], %(quotas)s::int[], %(blocked_bys)s::text[], %(runnable_ats)s::float8[],
                  %(tokens)s::float8[], %(in_flights)s::int[], %(probes)s::bool[], %(floors)s::float8[])
           AS l (webhook_id, quota, blocked_by, runnable_at, tokens, in_flight, probe, floor)
), pick AS (
    SELECT p.webhook_id, delivery_id,
           sum(bytes) OVER (ORDER BY next_retry_at, delivery_id ROWS UNBOUNDED PRECEDING) - bytes < %(body_bytes)s::bigint AS fits
      FROM lane l, LATERAL (
        SELECT webhook_id, delivery_id, next_retry_at,
               -- Only what is compressed has to be unpacked to be measured; the rest knows its length.
               CASE WHEN pg_column_compression(message_body) IS NULL THEN pg_column_size(message_body)
                    ELSE octet_length(message_body::text) END AS bytes
          FROM (SELECT * FROM (
                    SELECT *
                      FROM pggit.alert_delivery_queue w
                     WHERE w.webhook_id = l.webhook_id AND w.routed AND w.delivery_status IN ('pending', 'retrying')
                       AND w.leases_lost < 3 AND w.next_retry_at BETWEEN to_timestamp(l.floor) AND now()
                     ORDER BY next_retry_at, delivery_id
                     LIMIT l.quota
                       FOR NO KEY UPDATE SKIP LOCKED) waiting
                UNION ALL
                SELECT * FROM (
                    SELECT *
                      FROM pggit.alert_delivery_queue n
                     WHERE n.webhook_id = l.webhook_id AND NOT n.routed AND n.delivery_status IN ('pending', 'retrying')
                       AND n.next_retry_at BETWEEN to_timestamp(%(rows_floor)s) AND now()
                     ORDER BY next_retry_at, delivery_id
                     LIMIT l.quota
                       FOR NO KEY UPDATE SKIP LOCKED) new) due
         ORDER BY next_retry_at, delivery_id
         LIMIT l.quota) p
     WHERE l.quota > 0
), claimed AS (
    UPDATE pggit.alert_delivery_queue
       SET delivery_status = 'sending', routed = true, worker_id = %(worker_id)s, leased_by = %(incarnation)s,
           lease_token = %(token)s, lease_until = now() + %(lease_s)s * interval '1 s'
     WHERE delivery_id = ANY (ARRAY(SELECT delivery_id FROM pick WHERE fits))
    RETURNING delivery_id, webhook_id, message_body::text AS body, retry_count, max_retries, attempts, leases_lost,
              extract(epoch FROM first_attempted_at)::float8 AS first_at, next_retry_at
), parked AS (  -- new rows that cannot go now leave queue_new, each once: found again through their lane's timer
    UPDATE pggit.alert_delivery_queue
       SET routed = true
     WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id
          FROM lane l, LATERAL (
            SELECT delivery_id
              FROM pggit.alert_delivery_queue n
             WHERE n.webhook_id = l.webhook_id AND NOT n.routed AND n.delivery_status IN ('pending', 'retrying')
               AND n.next_retry_at >= CASE WHEN l.quota > 0 THEN now() + interval '1 us' ELSE to_timestamp(%(rows_floor)s) END
             ORDER BY next_retry_at, delivery_id
             LIMIT 500
               FOR NO KEY UPDATE SKIP LOCKED) new))
), taken AS (
    SELECT l.webhook_id, count(c.webhook_id)::int AS n, l.probe AND count(c.webhook_id) > 0 AS probes,
           l.webhook_id IN (SELECT webhook_id FROM pick WHERE NOT fits) AS heavy
      FROM lane l
      LEFT JOIN claimed c USING (webhook_id)
     GROUP BY l.webhook_id, l.probe
), moved AS (
    UPDATE pggit.webhook_health_metrics h
       SET tokens = l.tokens - t.n,
           tokens_at = now(),
           in_flight = l.in_flight + t.n,
           circuit_state = CASE WHEN t.probes THEN 'half_open' ELSE h.circuit_state END,
           circuit_epoch = h.circuit_epoch + t.probes::int,
           circuit_until = CASE WHEN t.probes THEN now() + %(lease_s)s * interval '1 s' ELSE h.circuit_until END,
           health_status = CASE WHEN t.probes THEN 'degraded' ELSE h.health_status END,
           blocked_by = CASE WHEN t.n >= l.quota THEN l.blocked_by END,
           runnable_at = CASE WHEN t.heavy THEN now()
                              WHEN t.n >= l.quota THEN to_timestamp(l.runnable_at)
                              WHEN l.floor > '-Infinity' THEN now()
                              ELSE least((SELECT min(next_retry_at)
                                            FROM pggit.alert_delivery_queue w
                                           WHERE w.webhook_id = l.webhook_id AND w.routed
                                             AND delivery_status IN ('pending', 'retrying') AND leases_lost < 3
                                             AND next_retry_at > now()),
                                         (SELECT min(next_retry_at)
                                            FROM pggit.alert_delivery_queue n
                                           WHERE n.webhook_id = l.webhook_id AND NOT n.routed
                                             AND delivery_status IN ('pending', 'retrying') AND next_retry_at > now()))
                         END
      FROM lane l
      JOIN taken t USING (webhook_id)
     WHERE h.webhook_id = ANY (%(webhook_ids)s)  -- looked up, whatever the planner believes of the table
       AND h.webhook_id = l.webhook_id
)
SELECT t.webhook_id, t.heavy,
       c.delivery_id, c.body, c.retry_count, c.max_retries, c.attempts, c.leases_lost, c.first_at,
       extract(epoch FROM c.next_retry_at)::float8
  FROM taken t
  LEFT JOIN claimed c USING (webhook_id)
 -- What is due longest goes to the senders first; a join in a hash table's order would hand it out last.
 ORDER BY c.next_retry_at, c.delivery_id
