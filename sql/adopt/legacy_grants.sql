-- Returns statements that grant the rights on the views and functions of an earlier pggit again,
-- to be run once migration 0001 has created the new ones.
WITH views AS (
    SELECT c.oid, c.relacl, format('%s %I.%I', 'TABLE', 'pggit', c.relname) AS named
      FROM pg_class c
     WHERE c.relnamespace = to_regnamespace('pggit') AND c.relkind = 'v'
       AND c.relname IN ('v_webhook_health_dashboard', 'v_webhook_performance',
                         'v_degraded_webhooks')
), functions AS (
    SELECT p.proacl, format('FUNCTION pggit.%I', p.proname) AS named
      FROM pg_proc p
     WHERE p.pronamespace = to_regnamespace('pggit')
       AND p.proname IN ('get_ready_deliveries', 'update_webhook_health', 'get_webhook_decrypted',
                         'count_pending_by_status')
), entries AS (
    SELECT v.named, '' AS columns, e.* FROM views v, aclexplode(v.relacl) e
    UNION ALL
    SELECT v.named, format(' (%I)', a.attname), e.*
      FROM views v JOIN pg_attribute a ON a.attrelid = v.oid, aclexplode(a.attacl) e
    UNION ALL
    SELECT f.named, '', e.* FROM functions f, aclexplode(f.proacl) e
)
-- PUBLIC may execute a new function. The old one may have had no such right, so revoke it first.
SELECT format('REVOKE ALL ON %s FROM PUBLIC', named) FROM functions WHERE proacl IS NOT NULL
UNION ALL
SELECT *
  FROM (SELECT format('GRANT %s%s ON %s TO %s%s', privilege_type, columns, named,
                      CASE grantee WHEN 0 THEN 'PUBLIC'
                                   ELSE quote_ident(pg_get_userbyid(grantee)) END,
                      CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
          FROM entries ORDER BY 1) AS grants
