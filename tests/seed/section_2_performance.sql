SELECT
    webhook_id,
    health_status,
    total_deliveries,
    success_rate_percent,
    avg_response_time_ms,
    consecutive_failures,
    success_freshness       -- minutes since last success
FROM pggit.v_webhook_performance
WHERE health_status != 'healthy'
ORDER BY health_status DESC;
