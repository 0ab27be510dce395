-- Asks the catalog, since a look by name fails for who may not use the schema.
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'pggit' AND c.relname = 'installation') AS found
