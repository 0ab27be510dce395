SELECT
    webhook_id,
    health_status,           -- healthy, degraded, unavailable
    total_deliveries,
    successful_deliveries,
    failed_deliveries,
    ROUND(100.0 * successful_deliveries /
          NULLIF(total_deliveries, 0), 2) as success_rate_pct,
    avg_response_time_ms,
    consecutive_failures
FROM pggit.webhook_health_metrics
ORDER BY health_status DESC, consecutive_failures DESC;
