-- The registry's rows of the lanes just locked. A statement of its own: its snapshot is younger
-- than the locks, so it sees a registration or a resume that committed before them. One that
-- commits later finds the lane parked, and its trigger makes the lane runnable.
SELECT webhook_id, {settings_columns}
  FROM pggit.webhooks
 WHERE webhook_id = ANY (%(webhook_ids)s::bigint[])
