-- Returns statements that drop the views and functions of an earlier pggit, views first. Migration
-- 0001 creates them again.
(SELECT format('DROP VIEW %s', string_agg(format('pggit.%I', relname), ', '))
   FROM pg_class
  WHERE relnamespace = to_regnamespace('pggit') AND relkind = 'v'
    AND relname IN ('v_webhook_health_dashboard', 'v_webhook_performance', 'v_degraded_webhooks')
 HAVING count(*) > 0)
UNION ALL
-- With any arguments: an overload that remained would be called instead of the new function.
(SELECT format('DROP FUNCTION %s', oid::regprocedure)
   FROM pg_proc
  WHERE pronamespace = to_regnamespace('pggit') AND prokind = 'f'
    AND proname IN ('get_ready_deliveries', 'update_webhook_health', 'get_webhook_decrypted',
                     'count_pending_by_status'))
