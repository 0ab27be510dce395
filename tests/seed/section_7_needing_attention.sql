-- 3. Degraded webhooks requiring attention
SELECT webhook_id, health_status, consecutive_failures,
       ROUND(100.0 * successful_deliveries /
             NULLIF(total_deliveries, 0), 2) as success_rate_pct,
       ROUND(avg_response_time_ms, 1) as avg_ms,
       hours_since_success
FROM pggit.v_degraded_webhooks
ORDER BY consecutive_failures DESC;
