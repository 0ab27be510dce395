-- When this worker must look again although nothing wakes it: seconds to the earliest timer of the
-- lanes that it takes (%(new)s: of new ones, %(slow)s: of slow ones, too); whether there are new
-- rows already (others had their lanes locked a moment ago); seconds to the earliest row in
-- quarantine. The low-water marks: see lock_lanes.
-- Epochs are subtracted, not instants: a row may be due at 'infinity', and before PostgreSQL 17 no
-- interval is infinite.
SELECT least(
           (SELECT extract(epoch FROM h.runnable_at)::float8
              FROM pggit.webhook_health_metrics h
             WHERE h.runnable_at >= to_timestamp(%(lanes_from)s) AND h.slow IS FALSE
             ORDER BY h.runnable_at
             LIMIT 1),
           (SELECT extract(epoch FROM h.runnable_at)::float8
              FROM pggit.webhook_health_metrics h
             WHERE h.runnable_at IS NOT NULL AND h.slow IS NULL
             ORDER BY h.runnable_at
             LIMIT %(new)s::boolean::int),
           (SELECT extract(epoch FROM h.runnable_at)::float8
              FROM pggit.webhook_health_metrics h
             WHERE h.runnable_at IS NOT NULL AND h.slow IS TRUE
             ORDER BY h.runnable_at
             LIMIT %(slow)s::boolean::int))
           - extract(epoch FROM clock_timestamp())::float8,
       EXISTS (SELECT FROM pggit.alert_delivery_queue q
                WHERE {new:q} AND q.next_retry_at >= to_timestamp(%(rows_from)s)),
       (SELECT extract(epoch FROM q.next_retry_at)::float8
               - extract(epoch FROM clock_timestamp())::float8
          FROM pggit.alert_delivery_queue q
         WHERE {quarantined:q} AND {sendable:q}
         ORDER BY q.next_retry_at
         LIMIT 1)
