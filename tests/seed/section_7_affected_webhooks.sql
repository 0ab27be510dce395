SELECT webhook_id, consecutive_failures, health_status
FROM pggit.webhook_health_metrics
WHERE failed_deliveries > successful_deliveries
ORDER BY failed_deliveries DESC LIMIT 10;
