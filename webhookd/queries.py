"""The SQL statements, one a file under sql/queries, loaded by name."""

from functools import cache
from importlib.resources import files


@cache
def load(name: str) -> str:
    """Return the text of sql/queries/*name*.sql; raise `FileNotFoundError` where there is none."""
    return files("webhookd.sql").joinpath("queries", f"{name}.sql").read_text(encoding="utf-8")
