-- The views and functions of an earlier pggit, as statements that drop them, views first: migration 0001 makes them anew.
(SELECT format('DROP VIEW %s', string_agg(format('pggit.%I', relname), ', '))
   FROM pg_class
  WHERE relnamespace = to_regnamespace('pggit') AND relkind = 'v'
    AND relname IN ('v_webhook_health_dashboard', 'v_webhook_performance', 'v_degraded_webhooks')
 HAVING count(*) > 0)
UNION ALL
-- Whatever their arguments: an overload that is left behind would answer some of the calls.
(SELECT format('DROP FUNCTION %s', oid::regprocedure)
   FROM pg_proc
  WHERE pronamespace = to_regnamespace('pggit') AND prokind = 'f'
    AND proname IN ('get_ready_deliveries', 'update_webhook_health', 'get_webhook_decrypted', 'count_pending_by_status'))
