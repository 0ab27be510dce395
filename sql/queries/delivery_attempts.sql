-- The attempts of one delivery, oldest first.
SELECT created_at, event_type, http_status, response_time_ms, worker_id, event_details
  FROM pggit.alert_delivery_log
 WHERE delivery_id = %(delivery_id)s
 ORDER BY log_id
