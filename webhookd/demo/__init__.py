"""The demo and what it runs on one machine: receivers, an embedded PostgreSQL, webhookd itself."""
