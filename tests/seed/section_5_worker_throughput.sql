-- Compare worker throughput
SELECT worker_id,
       COUNT(*) as total_deliveries,
       SUM(CASE WHEN status = 'delivered' THEN 1 ELSE 0 END) as successful,
       ROUND(100.0 * SUM(CASE WHEN status = 'delivered' THEN 1 ELSE 0 END) /
             COUNT(*), 2) as success_rate_pct
FROM pggit.alert_delivery_queue
WHERE created_at > NOW() - INTERVAL '1 hour'
GROUP BY worker_id;
