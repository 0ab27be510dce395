-- Lock the lanes of some results, in the same order in all workers: otherwise two of them could
-- deadlock. A lane that an open transaction of an operator holds is skipped, so that it delays the
-- results of its own webhook only.
SELECT extract(epoch FROM now())::float8, {lane_columns}
  FROM pggit.webhook_health_metrics
 WHERE webhook_id = ANY (%(webhook_ids)s::bigint[])
 ORDER BY webhook_id
   FOR NO KEY UPDATE SKIP LOCKED
