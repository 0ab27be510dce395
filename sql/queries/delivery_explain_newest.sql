-- The highest id that can be seen; no row: an empty queue.
SELECT delivery_id FROM pggit.alert_delivery_queue ORDER BY delivery_id DESC LIMIT 1
