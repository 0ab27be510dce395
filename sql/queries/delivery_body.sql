-- A delivery's body as it is sent; NULL where that is too large to be sent or shown.
SELECT CASE WHEN ({sendable}) IS NOT FALSE THEN message_body::text END AS body
  FROM pggit.alert_delivery_queue
 WHERE delivery_id = %(delivery_id)s
