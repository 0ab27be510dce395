SELECT webhook_id, ROUND(avg_response_time_ms, 1) as avg_ms
FROM pggit.webhook_health_metrics
WHERE total_deliveries > 0
ORDER BY avg_response_time_ms DESC
LIMIT 10
