-- Deliveries that failed in the last hour and are not retried.
SELECT count(*) AS errors_1h
  FROM pggit.alert_delivery_log
 WHERE event_type IN ('retrying', 'failed') AND event_type = 'failed'
   AND created_at > now() - interval '1 hour'
