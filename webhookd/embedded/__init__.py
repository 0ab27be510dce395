"""A PostgreSQL of webhookd's own, for a machine that has none."""
