"""What the schema consists of, read from the migrations: what is missing is mended with the
migration's own words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from webhookd.schema.migrate import Migration

_STATEMENT = re.compile(
    r"^(?P<verb>CREATE|DROP)\s+(?P<kind>TABLE|VIEW|TRIGGER|INDEX)\s+(?:CONCURRENTLY\s+)?(?:IF\s+(?:NOT\s+)?EXISTS\s+)?"
    r"(?:pggit\.)?(?P<name>\w+)(?P<rest>.*?);",
    re.MULTILINE | re.DOTALL,
)


@dataclass(slots=True)
class Schema:
    """Names of tables and views; statements that make the triggers (by table and name) and the
    indexes (by name).
    """

    tables: list[str] = field(default_factory=lambda: ["webhookd_migrations"])
    triggers: dict[tuple[str, str], str] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)


def expected_schema(migrations: Sequence[Migration]) -> Schema:
    """Return what is there after *migrations*."""
    schema = Schema()
    for migration in migrations:
        for found in _STATEMENT.finditer(re.sub(r"\s*--.*", "", migration.text)):
            _follow(schema, found)
    return schema


def _follow(schema: Schema, found: re.Match[str]) -> None:
    name, made = found["name"], found["verb"] == "CREATE"
    statement = " ".join(found[0].removesuffix(";").split())
    match found["kind"]:
        case "TABLE" | "VIEW" if made:
            schema.tables.append(name)
        case "TABLE" | "VIEW":
            schema.tables.remove(name)
        case "INDEX" if made:
            # Beside the traffic, whatever the migration did.
            schema.indexes[name] = re.sub(
                r"^CREATE INDEX( CONCURRENTLY)?", "CREATE INDEX CONCURRENTLY", statement
            )
        case "INDEX":
            del schema.indexes[name]
        case "TRIGGER":
            table = re.search(r"\bON\s+pggit\.(\w+)", found["rest"])
            assert table is not None
            if made:
                schema.triggers[table[1], name] = statement
            else:
                del schema.triggers[table[1], name]
