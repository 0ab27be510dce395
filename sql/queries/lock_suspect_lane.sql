-- The earliest due row that lost three leases or more, and its lane, locked.
SELECT h.webhook_id, h.circuit_state, h.circuit_epoch, h.consecutive_failures,
       extract(epoch FROM h.circuit_until)::float8, extract(epoch FROM h.hold_until)::float8,
       h.tokens, extract(epoch FROM h.tokens_at)::float8, h.in_flight,
       extract(epoch FROM h.runnable_at)::float8, h.blocked_by, h.health_status, extract(epoch FROM now())::float8,
       q.delivery_id
  FROM pggit.alert_delivery_queue q
  JOIN pggit.webhook_health_metrics h USING (webhook_id)
 WHERE q.delivery_status IN ('pending', 'retrying') AND q.leases_lost >= 3 AND q.next_retry_at <= now()
 ORDER BY q.next_retry_at
 LIMIT 1
   FOR NO KEY UPDATE OF h, q SKIP LOCKED
