-- Claims that no worker can be working on any more.
SELECT count(*) FILTER (WHERE lease_until < now() - interval '1 minute') AS expired,
       count(*) FILTER (WHERE lease_until IS NULL OR lease_token IS NULL) AS unleased
  FROM pggit.alert_delivery_queue
 WHERE delivery_status = 'sending'
