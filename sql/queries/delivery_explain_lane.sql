-- A webhook's lane as lock_lanes returns it, unlocked.
SELECT {lane_columns:h}
  FROM pggit.webhook_health_metrics h
 WHERE h.webhook_id = %(webhook_id)s
