-- What every role that inserts needs and the migration grants to PUBLIC: a look at the flag, and
-- the function that triggers call. And what PUBLIC must not have: functions that run with the
-- owner's rights.
SELECT 'roles that insert lack SELECT on the sequence pggit.wake_flag' AS what,
       'GRANT SELECT ON SEQUENCE pggit.wake_flag TO PUBLIC' AS command
  FROM pg_class c
 WHERE c.relnamespace = 'pggit'::regnamespace AND c.relname = 'wake_flag'
   AND NOT EXISTS (SELECT FROM aclexplode(coalesce(c.relacl, acldefault('s', c.relowner))) a
                    WHERE a.grantee = 0 AND a.privilege_type = 'SELECT')
 UNION ALL
SELECT 'roles that insert lack EXECUTE on ' || p.oid::regprocedure,
       format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', p.oid::regprocedure)
  FROM pg_proc p
 WHERE p.pronamespace = 'pggit'::regnamespace AND p.proname = 'wake'
   AND NOT EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                    WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
 UNION ALL
SELECT 'every role may execute ' || p.oid::regprocedure || ' with the rights of its owner',
       format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', p.oid::regprocedure)
  FROM pg_proc p
 WHERE p.pronamespace = 'pggit'::regnamespace AND p.prosecdef
   -- An older schema grants it; the migration takes it away.
   AND EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = p.pronamespace AND c.relname = 'watch')
   AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
