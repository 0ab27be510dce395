-- The deliveries that wait in a copied database belong to the original, which sends them itself.
WITH discarded AS (
    UPDATE pggit.alert_delivery_queue
       SET delivery_status = 'failed'  -- the schema's trigger ends the leases
     WHERE delivery_status IN ('pending', 'retrying', 'sending')
 RETURNING delivery_id, webhook_id
)
INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
SELECT delivery_id, webhook_id, 'failed',
       jsonb_build_object('reason', 'discarded by webhookd adopt: the database is a copy')
  FROM discarded
