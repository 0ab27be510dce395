"""webhookd: delivers rows of a PostgreSQL queue as signed webhooks."""

__version__ = "0.1.0"
