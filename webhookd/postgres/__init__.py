"""Everything that executes delivery SQL. No thread and no policy here."""
