-- 2. Webhook health summary
SELECT health_status, COUNT(*) as webhook_count
FROM pggit.webhook_health_metrics
GROUP BY health_status
ORDER BY CASE
    WHEN health_status = 'unavailable' THEN 0
    WHEN health_status = 'degraded' THEN 1
    WHEN health_status = 'healthy' THEN 2
    ELSE 3 END;
