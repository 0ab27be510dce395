-- Enabled webhooks whose circuit keeps deliveries back now, those that failed longest first. One
-- that is past its time holds nothing: the next delivery is its probe.
SELECT h.webhook_id, extract(epoch FROM now() - h.last_success_at)::float8 AS success_s,
       count(*) OVER () AS webhooks
  FROM pggit.webhook_health_metrics h
  JOIN pggit.webhooks w USING (webhook_id)
 WHERE h.circuit_state <> 'closed' AND h.circuit_until > now() AND w.enabled
 ORDER BY h.last_success_at NULLS FIRST, h.webhook_id
 LIMIT %(limit)s
