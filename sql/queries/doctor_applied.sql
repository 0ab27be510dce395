-- The newest migration of this database.
SELECT max(version) AS version FROM pggit.webhookd_migrations
