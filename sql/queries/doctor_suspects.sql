-- Deliveries that lost so many leases that they may be what kills workers.
SELECT delivery_id, webhook_id, leases_lost
  FROM pggit.alert_delivery_queue
 WHERE delivery_status IN ('pending', 'retrying') AND leases_lost >= 3
 ORDER BY next_retry_at
 LIMIT 100
