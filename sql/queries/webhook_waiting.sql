-- How many undelivered deliveries name a webhook.
SELECT count(*) AS waiting
  FROM pggit.alert_delivery_queue
 WHERE webhook_id = %(webhook_id)s AND delivery_status IN ('pending', 'retrying', 'sending')
