-- The triggers that are there, and whether they fire in ordinary sessions.
SELECT c.relname AS table_name, t.tgname AS name, t.tgenabled IN ('O', 'A') AS fires
  FROM pg_trigger t
  JOIN pg_class c ON c.oid = t.tgrelid
 WHERE c.relnamespace = 'pggit'::regnamespace AND NOT t.tgisinternal
