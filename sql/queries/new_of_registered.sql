-- Of the next registered webhooks after %(after)s, at most %(probes)s: the last one, how many they
-- are, and in order those that have new rows. For a look while rows of webhooks that nobody
-- registered stand before theirs in queue_new. The low-water mark: see lock_lanes.
SELECT max(w.webhook_id), count(*),
       coalesce(array_agg(w.webhook_id ORDER BY w.webhook_id) FILTER (WHERE w.has_new), '{}')
  FROM (SELECT p.webhook_id,
               EXISTS (SELECT FROM pggit.alert_delivery_queue q
                        WHERE q.webhook_id = p.webhook_id AND {new:q}
                          AND q.next_retry_at >= to_timestamp(%(rows_from)s)) AS has_new
          FROM (SELECT webhook_id
                  FROM pggit.webhooks
                 WHERE webhook_id > %(after)s
                 ORDER BY webhook_id
                 LIMIT %(probes)s) p) w
