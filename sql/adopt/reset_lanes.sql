-- A copy starts without the original's circuits, tokens and claims.
UPDATE pggit.webhook_health_metrics
   SET in_flight = 0, runnable_at = NULL, blocked_by = NULL, blocked_reason = NULL, tokens = NULL,
       tokens_at = now(), hold_until = NULL, circuit_state = 'closed',
       circuit_epoch = circuit_epoch + 1, circuit_until = NULL, consecutive_failures = 0
