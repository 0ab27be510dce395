-- Why a webhook is held, and its lane as lock_lanes returns it, unlocked.
SELECT h.blocked_reason, {lane_columns:h}
  FROM pggit.webhook_health_metrics h
 WHERE h.webhook_id = %(webhook_id)s
