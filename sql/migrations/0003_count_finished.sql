-- Count what was finished before anything counted it. In a transaction of its own: the triggers of 0002 hold locks that inserts must
-- not wait for while this reads the whole queue. It adds the difference within one snapshot, so it is right whatever happens
-- meanwhile, and mends the counts whenever it is run again.
-- oldest webhookd: 0.1.0

INSERT INTO pggit.finished_counts (delivered, failed)
SELECT q.delivered - f.delivered, q.failed - f.failed
  FROM (SELECT count(*) FILTER (WHERE delivery_status = 'delivered') AS delivered,
               count(*) FILTER (WHERE delivery_status = 'failed') AS failed
          FROM pggit.alert_delivery_queue) q,
       (SELECT coalesce(sum(delivered), 0) AS delivered, coalesce(sum(failed), 0) AS failed FROM pggit.finished_counts) f;
