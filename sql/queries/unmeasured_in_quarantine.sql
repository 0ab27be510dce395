-- Rows in quarantine that no claim takes, because their bodies were not measured or are too large.
SELECT q.delivery_id
  FROM pggit.alert_delivery_queue q
 WHERE {quarantined:q} AND ({sendable:q}) IS NOT TRUE
 ORDER BY q.next_retry_at
 LIMIT %(limit)s
