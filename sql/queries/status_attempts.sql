-- The last hour's attempts: how many, how many delivered, and the 99th percentile of their duration.
SELECT count(*) AS attempts,
       count(*) FILTER (WHERE event_type = 'delivered') AS delivered,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY response_time_ms) AS p99_ms
  FROM pggit.alert_delivery_log
 WHERE created_at > now() - interval '1 hour' AND event_type IN ('delivered', 'retrying', 'failed')
