-- Deliveries that lost so many leases that they may be what kills workers.
SELECT delivery_id, webhook_id, leases_lost
  FROM pggit.alert_delivery_queue
 WHERE {quarantined}
 ORDER BY next_retry_at
 LIMIT 100
