-- Which of %(tables)s are there, and who owns them; the schema's owner is the role that migrated
-- it.
SELECT t.name, pg_get_userbyid(c.relowner) AS owner,
       pg_get_userbyid((SELECT relowner FROM pg_class
                         WHERE oid = 'pggit.installation'::regclass)) AS owner_of_most
  FROM unnest(%(tables)s::text[]) AS t (name)
  LEFT JOIN pg_class c ON c.oid = to_regclass('pggit.' || quote_ident(t.name))
