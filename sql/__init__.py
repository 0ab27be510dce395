"""The SQL that webhookd runs: `migrations/` builds the schema, `queries/` holds one statement a
file.

`adopt/` turns an earlier pggit's tables into what the first migration expects. Installed as the
package `webhookd.sql`.
"""
