"""The tables, triggers and indexes that the migrations create, read from their text. `doctor`
compares them with the database and prints the migration's own statement for what is missing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from webhookd.schema.migrate import Migration

_STATEMENT = re.compile(
    r"^(?P<verb>CREATE|DROP)\s+(?P<kind>TABLE|VIEW|TRIGGER|INDEX)\s+"
    r"(?:CONCURRENTLY\s+)?(?:IF\s+(?:NOT\s+)?EXISTS\s+)?"
    r"(?:pggit\.)?(?P<name>\w+)(?P<rest>.*?);",
    re.MULTILINE | re.DOTALL,
)


@dataclass(slots=True)
class Schema:
    """The names of tables and views; the statements that create the triggers (by table and name)
    and the indexes (by name).
    """

    tables: list[str] = field(default_factory=lambda: ["webhookd_migrations"])
    triggers: dict[tuple[str, str], str] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)


def expected_schema(migrations: Sequence[Migration]) -> Schema:
    """Return what exists after *migrations*."""
    schema = Schema()
    for migration in migrations:
        for found in _STATEMENT.finditer(re.sub(r"\s*--.*", "", migration.text)):
            _apply(schema, found)
    return schema


def _apply(schema: Schema, found: re.Match[str]) -> None:
    name, created = found["name"], found["verb"] == "CREATE"
    statement = " ".join(found[0].removesuffix(";").split())
    match found["kind"]:
        case "TABLE" | "VIEW" if created:
            schema.tables.append(name)
        case "TABLE" | "VIEW":
            schema.tables.remove(name)
        case "INDEX" if created:
            # An operator runs it under traffic, so it must not lock the table, even where the
            # migration did.
            schema.indexes[name] = re.sub(
                r"^CREATE INDEX( CONCURRENTLY)?", "CREATE INDEX CONCURRENTLY", statement
            )
        case "INDEX":
            del schema.indexes[name]
        case "TRIGGER":
            table = re.search(r"\bON\s+pggit\.(\w+)", found["rest"])
            assert table is not None
            if created:
                schema.triggers[table[1], name] = statement
            else:
                del schema.triggers[table[1], name]
