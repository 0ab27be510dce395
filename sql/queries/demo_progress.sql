-- What the demo shows: rows by status, circuits, each worker's share, and how long answers took.
SELECT (SELECT count(*) FROM pggit.alert_delivery_queue
         WHERE delivery_status IN ('pending', 'sending')) AS pending,
       (SELECT count(*) FROM pggit.alert_delivery_queue
         WHERE delivery_status = 'retrying') AS retrying,
       (SELECT count(*) FROM pggit.alert_delivery_queue
         WHERE delivery_status = 'delivered') AS delivered,
       (SELECT count(*) FROM pggit.alert_delivery_queue
         WHERE delivery_status = 'failed') AS failed,
       (SELECT coalesce(json_object_agg(webhook_id, circuit_state), '{}')
          FROM pggit.webhook_health_metrics WHERE circuit_state <> 'closed') AS circuits,
       -- Each opening makes the generation odd, each probe even, and closing adds one more.
       (SELECT sum((circuit_epoch + (circuit_state = 'open')::int) / 2)
          FROM pggit.webhook_health_metrics) AS openings,
       (SELECT coalesce(json_object_agg(worker_id, n ORDER BY worker_id), '{}')
          FROM (SELECT worker_id, count(*) AS n FROM pggit.alert_delivery_queue
                 WHERE delivery_status = 'delivered' GROUP BY worker_id) w) AS workers,
       (SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY response_time_ms)
          FROM pggit.alert_delivery_log WHERE event_type = 'delivered') AS answer_ms
