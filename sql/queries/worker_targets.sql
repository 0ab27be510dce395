-- Where the fleet's workers serve their metrics. Workers that have been silent for a while are
-- included: their silence must show.
SELECT worker_id, metrics_address
  FROM pggit.workers
 WHERE metrics_address IS NOT NULL
 ORDER BY worker_id, seen_at
