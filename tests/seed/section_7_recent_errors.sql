-- 4. Recent errors (last 1 hour)
SELECT COUNT(*) as errors_1h
FROM pggit.alert_delivery_queue
WHERE delivery_status = 'failed'
  AND created_at > NOW() - INTERVAL '1 hour';
