-- Of some claims, lock the rows that are not locked yet, and return the claims whose rows others
-- have locked: their results have to wait.
WITH free AS MATERIALIZED (
    SELECT q.delivery_id
      FROM unnest(%(delivery_ids)s::bigint[], %(tokens)s::bigint[]) AS r (delivery_id, token)
      JOIN pggit.alert_delivery_queue q ON q.delivery_id = r.delivery_id AND q.lease_token = r.token
     WHERE q.delivery_id = ANY (%(delivery_ids)s::bigint[])  -- looked up by key: see claim
       FOR NO KEY UPDATE OF q SKIP LOCKED
)
SELECT q.delivery_id, q.lease_token
  FROM unnest(%(delivery_ids)s::bigint[], %(tokens)s::bigint[]) AS r (delivery_id, token)
  JOIN pggit.alert_delivery_queue q ON q.delivery_id = r.delivery_id AND q.lease_token = r.token
 WHERE q.delivery_id = ANY (%(delivery_ids)s::bigint[])
   AND q.delivery_id NOT IN (SELECT delivery_id FROM free)
