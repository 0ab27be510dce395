SELECT health_status, COUNT(*) as count
FROM pggit.webhook_health_metrics
GROUP BY health_status
