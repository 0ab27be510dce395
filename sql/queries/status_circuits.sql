-- Registered webhooks whose circuit is not closed, the longest waiting first.
SELECT h.webhook_id, h.circuit_state, h.consecutive_failures,
       CASE WHEN h.circuit_until > now()
            THEN extract(epoch FROM h.circuit_until - now())::float8 END AS probe_in_s
  FROM pggit.webhook_health_metrics h
  JOIN pggit.webhooks w USING (webhook_id)
 WHERE h.circuit_state <> 'closed'
 ORDER BY h.circuit_until DESC, h.webhook_id
 LIMIT %(limit)s
