-- How many undelivered deliveries name a webhook.
SELECT (SELECT count(*) FROM pggit.v_waiting_deliveries WHERE webhook_id = %(webhook_id)s)
     + (SELECT count(*) FROM pggit.alert_delivery_queue
         WHERE webhook_id = %(webhook_id)s AND delivery_status = 'sending') AS waiting
