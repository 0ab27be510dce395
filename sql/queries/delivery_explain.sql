-- One delivery, and what its webhook's registry row says about being disabled. Instants are epoch
-- seconds of the database's clock, so that they compare with the lane's; next_retry_at may be
-- infinity.
SELECT q.delivery_id, q.webhook_id, q.delivery_status,
       q.attempts, q.retry_count, q.max_retries, q.leases_lost, q.routed,
       extract(epoch FROM q.next_retry_at)::float8 AS next_retry_at,
       extract(epoch FROM q.delivered_at)::float8 AS delivered_at,
       q.worker_id, q.leased_by, extract(epoch FROM q.lease_until)::float8 AS lease_until,
       w.disabled_reason, extract(epoch FROM now())::float8 AS now
  FROM pggit.alert_delivery_queue q
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE q.delivery_id = %(delivery_id)s
