-- Foreign keys onto %(table_name)s. keeps: a row that is referred to cannot go. indexed: whether
-- the server finds what refers to a row without reading that table whole. condition: for the rows r
-- of that table that refer to f.
SELECT c.conname AS name, c.conrelid::regclass::text AS referrer,
       c.confdeltype IN ('a', 'r') AS keeps,
       has_table_privilege(c.conrelid, 'SELECT') AS readable,
       EXISTS (SELECT FROM pg_index i
                WHERE i.indrelid = c.conrelid AND i.indkey[0] = ANY (c.conkey) AND i.indisvalid
                  AND i.indpred IS NULL) AS indexed,
       k.columns, k.condition
  FROM pg_constraint c
 CROSS JOIN LATERAL (
    SELECT string_agg(format('%%I', mine.attname), ', ' ORDER BY x.place) AS columns,
           string_agg(format('r.%%I = f.%%I', mine.attname, theirs.attname), ' AND '
                      ORDER BY x.place) AS condition
      FROM unnest(c.conkey, c.confkey) WITH ORDINALITY AS x (mine, theirs, place)
      JOIN pg_attribute mine ON mine.attrelid = c.conrelid AND mine.attnum = x.mine
      JOIN pg_attribute theirs
        ON theirs.attrelid = c.confrelid AND theirs.attnum = x.theirs) k
 WHERE c.contype = 'f' AND c.conparentid = 0
   AND c.confrelid = to_regclass('pggit.' || %(table_name)s)
 ORDER BY c.conname
