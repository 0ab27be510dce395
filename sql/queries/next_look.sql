-- When this worker must look again although nobody wakes it: seconds to the earliest lane's timer, whether new rows stand
-- there already (their lanes were locked by others a moment ago), and seconds to the earliest suspect row. The floors: see
-- lock_lanes.
-- Epochs are subtracted, not instants: a row may be due at 'infinity', and before PostgreSQL 17 no interval is infinite.
SELECT (SELECT extract(epoch FROM h.runnable_at)::float8 - extract(epoch FROM clock_timestamp())::float8
          FROM pggit.webhook_health_metrics h
         WHERE h.runnable_at >= to_timestamp(%(lanes_floor)s)
         ORDER BY h.runnable_at
         LIMIT 1),
       EXISTS (SELECT FROM pggit.alert_delivery_queue q
                WHERE NOT q.routed AND q.delivery_status IN ('pending', 'retrying')
                  AND q.next_retry_at >= to_timestamp(%(rows_floor)s)),
       (SELECT extract(epoch FROM q.next_retry_at)::float8 - extract(epoch FROM clock_timestamp())::float8
          FROM pggit.alert_delivery_queue q
         WHERE q.delivery_status IN ('pending', 'retrying') AND q.leases_lost >= 3
         ORDER BY q.next_retry_at
         LIMIT 1)
