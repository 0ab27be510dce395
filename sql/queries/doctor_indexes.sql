-- The indexes that are there, and whether queries may use them.
SELECT c.relname AS name, i.indisvalid AND i.indisready AS valid
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace = 'pggit'::regnamespace
