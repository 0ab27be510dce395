SELECT pg_notify('webhookd_wake', %(payload)s)
