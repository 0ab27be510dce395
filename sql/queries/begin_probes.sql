-- These locked lanes gave the one probe of their open circuit: it is half open until the lease
-- ends.
UPDATE pggit.webhook_health_metrics
   SET circuit_state = 'half_open', circuit_epoch = circuit_epoch + 1,
       circuit_until = now() + %(lease_s)s * interval '1 second', health_status = 'degraded'
 WHERE webhook_id = ANY (%(webhook_ids)s::bigint[])
