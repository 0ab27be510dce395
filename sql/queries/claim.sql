-- Take the admitted rows of the locked lanes, and say of every lane when it is to be looked at next.
-- One array element a lane: quota rows may go; blocked_by and runnable_at hold once the quota is used up (at once, if it is 0).
-- Rows are taken, the longest due first, until their bodies come to %(body_bytes)s; the one that passes that is still taken. A lane
-- that had to keep rows for it is runnable at once, and its column full is true.
-- Runs after lock_lanes in the same READ COMMITTED transaction: its snapshot is younger than the locks, so no row that a
-- record or an earlier claim left in these lanes is missed.
WITH lane AS (
    SELECT *
      FROM unnest(%(webhook_ids)s::bigint[], %(quotas)s::int[], %(blocked_bys)s::text[], %(runnable_ats)s::float8[],
                  %(tokens)s::float8[], %(in_flights)s::int[], %(probes)s::bool[])
           AS l (webhook_id, quota, blocked_by, runnable_at, tokens, in_flight, probe)
), pick AS MATERIALIZED (
    SELECT p.webhook_id, p.delivery_id,
           sum(p.bytes) OVER (ORDER BY p.next_retry_at, p.delivery_id ROWS UNBOUNDED PRECEDING) - p.bytes
               < %(body_bytes)s::bigint AS fits
      FROM lane l
     CROSS JOIN LATERAL (
        SELECT due.webhook_id, due.delivery_id, due.next_retry_at,
               -- Only what is compressed has to be unpacked to be measured; the rest knows its length.
               CASE WHEN pg_column_compression(due.message_body) IS NULL THEN pg_column_size(due.message_body)
                    ELSE octet_length(due.message_body::text) END AS bytes
          FROM (SELECT * FROM (
                    SELECT w.webhook_id, w.delivery_id, w.next_retry_at, w.message_body
                      FROM pggit.alert_delivery_queue w
                     WHERE w.webhook_id = l.webhook_id AND w.routed AND w.delivery_status IN ('pending', 'retrying')
                       AND w.leases_lost < 3 AND w.next_retry_at <= now()
                     ORDER BY w.next_retry_at, w.delivery_id
                     LIMIT l.quota
                       FOR NO KEY UPDATE SKIP LOCKED) waiting
                UNION ALL
                SELECT * FROM (
                    SELECT n.webhook_id, n.delivery_id, n.next_retry_at, n.message_body
                      FROM pggit.alert_delivery_queue n
                     WHERE n.webhook_id = l.webhook_id AND NOT n.routed AND n.delivery_status IN ('pending', 'retrying')
                       AND n.next_retry_at <= now()
                     ORDER BY n.next_retry_at, n.delivery_id
                     LIMIT l.quota
                       FOR NO KEY UPDATE SKIP LOCKED) new) due
         ORDER BY due.next_retry_at, due.delivery_id
         LIMIT l.quota) p
     WHERE l.quota > 0
), claimed AS (
    UPDATE pggit.alert_delivery_queue q
       SET delivery_status = 'sending', routed = true, worker_id = %(worker_id)s, leased_by = %(incarnation)s,
           lease_token = %(token)s, lease_until = now() + %(lease_s)s * interval '1 second'
     WHERE q.delivery_id = ANY (ARRAY(SELECT delivery_id FROM pick WHERE fits))
    RETURNING q.delivery_id, q.webhook_id, q.message_body::text AS body, q.retry_count, q.max_retries, q.attempts,
              q.leases_lost, coalesce(extract(epoch FROM now())::float8 - extract(epoch FROM q.first_attempted_at)::float8, 0) AS age_s,
              q.next_retry_at
), parked AS (  -- new rows that cannot go now leave queue_new, each once: found again through their lane's timer
    UPDATE pggit.alert_delivery_queue q
       SET routed = true
     WHERE q.delivery_id = ANY (ARRAY(
        SELECT n.delivery_id
          FROM lane l
         CROSS JOIN LATERAL (
            SELECT r.delivery_id
              FROM pggit.alert_delivery_queue r
             WHERE r.webhook_id = l.webhook_id AND NOT r.routed AND r.delivery_status IN ('pending', 'retrying')
               AND r.next_retry_at > CASE WHEN l.quota > 0 THEN now() ELSE '-infinity'::timestamptz END
             ORDER BY r.next_retry_at, r.delivery_id
             LIMIT 500
               FOR NO KEY UPDATE SKIP LOCKED) n))
), taken AS (
    SELECT webhook_id, count(*)::int AS n FROM claimed GROUP BY webhook_id
), moved AS (
    UPDATE pggit.webhook_health_metrics h
       SET tokens = l.tokens - coalesce(t.n, 0),
           tokens_at = now(),
           in_flight = l.in_flight + coalesce(t.n, 0),
           circuit_state = CASE WHEN l.probe AND t.n > 0 THEN 'half_open' ELSE h.circuit_state END,
           circuit_epoch = h.circuit_epoch + (l.probe AND t.n > 0 IS TRUE)::int,
           circuit_until = CASE WHEN l.probe AND t.n > 0 THEN now() + %(lease_s)s * interval '1 second'
                                ELSE h.circuit_until END,
           health_status = CASE WHEN l.probe AND t.n > 0 THEN 'degraded' ELSE h.health_status END,
           blocked_by = CASE WHEN coalesce(t.n, 0) >= l.quota THEN l.blocked_by END,
           runnable_at = CASE WHEN l.webhook_id IN (SELECT webhook_id FROM pick WHERE NOT fits) THEN now()
                              WHEN coalesce(t.n, 0) >= l.quota THEN to_timestamp(l.runnable_at)
                              ELSE least((SELECT w.next_retry_at
                                            FROM pggit.alert_delivery_queue w
                                           WHERE w.webhook_id = l.webhook_id AND w.routed
                                             AND w.delivery_status IN ('pending', 'retrying') AND w.leases_lost < 3
                                             AND w.next_retry_at > now()
                                           ORDER BY w.next_retry_at LIMIT 1),
                                         (SELECT n.next_retry_at
                                            FROM pggit.alert_delivery_queue n
                                           WHERE n.webhook_id = l.webhook_id AND NOT n.routed
                                             AND n.delivery_status IN ('pending', 'retrying') AND n.next_retry_at > now()
                                           ORDER BY n.next_retry_at LIMIT 1))
                         END
      FROM lane l
      LEFT JOIN taken t USING (webhook_id)
     WHERE h.webhook_id = l.webhook_id
)
SELECT l.webhook_id,
       -- Only a lane out of tokens asks whether due rows had to stay: that is what rate_limit_hits_total counts.
       CASE WHEN l.blocked_by = 'rate' THEN
            (SELECT count(*) FROM (SELECT FROM pggit.alert_delivery_queue w
                                    WHERE w.webhook_id = l.webhook_id AND w.routed AND w.leases_lost < 3
                                      AND w.delivery_status IN ('pending', 'retrying') AND w.next_retry_at <= now()
                                    LIMIT l.quota + 1) x)
          + (SELECT count(*) FROM (SELECT FROM pggit.alert_delivery_queue n
                                    WHERE n.webhook_id = l.webhook_id AND NOT n.routed
                                      AND n.delivery_status IN ('pending', 'retrying') AND n.next_retry_at <= now()
                                    LIMIT l.quota + 1) x) > l.quota
       ELSE false END AS rate_limited,
       l.webhook_id IN (SELECT webhook_id FROM pick WHERE NOT fits) AS "full",
       c.delivery_id, c.body, c.retry_count, c.max_retries, c.attempts, c.leases_lost, c.age_s
  FROM lane l
  LEFT JOIN claimed c USING (webhook_id)
 -- What is due longest goes to the senders first; a join in a hash table's order would hand it out last.
 ORDER BY c.next_retry_at, c.delivery_id
