-- How many deliveries go before this one: those of the same webhook that claims take earlier. Two
-- short reads of the indexes that claims use; each stops at %(most)s, so that a backlog of millions
-- costs no more than that.
SELECT (SELECT count(*)
          FROM (SELECT FROM pggit.alert_delivery_queue w
                 WHERE w.webhook_id = q.webhook_id AND {routed:w}
                   AND (w.next_retry_at, w.delivery_id) < (q.next_retry_at, q.delivery_id)
                 ORDER BY w.next_retry_at, w.delivery_id
                 LIMIT %(most)s) waiting)
     + (SELECT count(*)
          FROM (SELECT FROM pggit.alert_delivery_queue n
                 WHERE n.webhook_id = q.webhook_id AND {new:n}
                   AND (n.next_retry_at, n.delivery_id) < (q.next_retry_at, q.delivery_id)
                 ORDER BY n.next_retry_at, n.delivery_id
                 LIMIT %(most)s) new) AS ahead
  FROM pggit.alert_delivery_queue q
 WHERE q.delivery_id = %(delivery_id)s
