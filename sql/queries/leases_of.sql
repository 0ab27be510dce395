-- Claims of a worker incarnation that died. A probe is recognised by the end of its lease, which
-- the lane repeats: recorded under the circuit's generation, it lets the next probe go at once.
SELECT q.delivery_id, q.lease_token,
       CASE WHEN h.circuit_state = 'half_open' AND h.circuit_until = q.lease_until
            THEN h.circuit_epoch ELSE -1 END,
       {count_columns:q}, q.webhook_id, {settings_columns:w}
  FROM pggit.alert_delivery_queue q
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE q.delivery_status = 'sending' AND q.leased_by = %(incarnation)s
 ORDER BY q.lease_until
 LIMIT %(limit)s
