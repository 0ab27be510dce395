-- Reset circuit breaker for a webhook
UPDATE pggit.webhook_health_metrics
SET consecutive_failures = 0,
    health_status = 'healthy',
    last_check_at = CURRENT_TIMESTAMP
WHERE webhook_id = ?
  AND health_status != 'healthy';
