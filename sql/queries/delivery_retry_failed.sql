-- Send failed deliveries again, the next batch after an id: of one webhook, or that failed lately,
-- where asked for. In batches, so that a long history is not held locked; ids grow from batch to
-- batch, so none is met twice.
UPDATE pggit.alert_delivery_queue
   SET delivery_status = 'pending', retry_count = 0, next_retry_at = now()
 WHERE delivery_id = ANY (ARRAY(
        SELECT delivery_id
          FROM pggit.alert_delivery_queue
         WHERE delivery_id > %(after)s AND delivery_status = 'failed'
           AND (%(webhook_id)s::bigint IS NULL OR webhook_id = %(webhook_id)s)
           AND (%(since_s)s::float8 IS NULL
                OR coalesce(attempted_at, created_at) > now() - %(since_s)s * interval '1 second')
         ORDER BY delivery_id
         LIMIT %(limit)s
           FOR UPDATE))
RETURNING delivery_id, webhook_id
