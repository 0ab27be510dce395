SELECT
    webhook_id,
    health_status,
    consecutive_failures,
    minutes_since_check,
    hours_since_success
FROM pggit.v_degraded_webhooks
WHERE consecutive_failures > 0
ORDER BY consecutive_failures DESC;
