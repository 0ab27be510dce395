"""The SQL statements, one a file under sql/queries, loaded by name."""

import re
from functools import cache
from importlib.resources import files


@cache
def load(name: str) -> str:
    """Return the statement in sql/queries/*name*.sql; raise `FileNotFoundError` where there is
    none.

    Comments and line breaks are left out: what psycopg makes of a query of up to 4,096 characters
    it remembers. The name is put after the first word: so pg_stat_statements, pg_stat_activity and
    the server's log say which statement it is. (In front of the first word pg_stat_statements would
    drop it, from PostgreSQL 18 on.)
    """
    text = files("webhookd.sql").joinpath("queries", f"{name}.sql").read_text(encoding="utf-8")
    statement = " ".join(re.sub(r"--.*", "", text).split())
    return re.sub(r"^\w+", rf"\g<0> /* webhookd:{name} */", statement)
