-- Find problematic webhooks
SELECT webhook_id, health_status, consecutive_failures,
       ROUND(100.0 * successful_deliveries /
             NULLIF(total_deliveries, 0), 2) as success_rate,
       ROUND(avg_response_time_ms, 1) as avg_ms
FROM pggit.webhook_health_metrics
WHERE health_status IN ('degraded', 'unavailable')
ORDER BY consecutive_failures DESC;
