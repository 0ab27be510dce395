"""The schema: migrations, the database's identity, and the tables of an earlier pggit."""
