-- Webhooks that need attention, the worst first.
SELECT webhook_id, health_status, consecutive_failures,
       round(100.0 * successful_deliveries / nullif(total_deliveries, 0), 2)::float8
           AS success_rate_percent,
       round(avg_response_time_ms, 1)::float8 AS avg_response_time_ms, hours_since_success::float8
  FROM pggit.v_degraded_webhooks
 ORDER BY consecutive_failures DESC, webhook_id
 LIMIT %(limit)s
