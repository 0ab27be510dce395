-- Store why the configuration holds these locked lanes; NULL: it holds them no longer. Returns the
-- lanes for which that is new.
UPDATE pggit.webhook_health_metrics h
   SET blocked_reason = r.reason,
       blocked_by = CASE WHEN r.reason IS NULL THEN h.blocked_by ELSE {configuration} END
  FROM unnest(%(webhook_ids)s::bigint[], %(reasons)s::text[]) AS r (webhook_id, reason)
 WHERE h.webhook_id = ANY (%(webhook_ids)s::bigint[])  -- looked up by key: see claim
   AND h.webhook_id = r.webhook_id
   AND h.blocked_reason IS DISTINCT FROM r.reason
RETURNING h.webhook_id, r.reason
