SELECT
    health_status,
    webhook_count,
    avg_response_ms,
    failures_1h,
    failures_24h
FROM pggit.v_webhook_health_dashboard;
