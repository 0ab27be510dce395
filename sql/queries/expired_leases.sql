-- Claims whose lease ran out, whichever worker held them. Generation -1 is that of no circuit: if
-- the claim was a probe, the lane's circuit_until has passed as well.
SELECT q.delivery_id, q.lease_token, -1, {count_columns:q}, q.webhook_id, {settings_columns:w}
  FROM pggit.alert_delivery_queue q
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE q.delivery_status = 'sending' AND q.lease_until <= now()
 ORDER BY q.lease_until
 LIMIT %(limit)s
