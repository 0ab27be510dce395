"""How a command is written so that it can be pasted into a shell: with the database that was examined, without its password."""

import shlex
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from webhookd.config import COMMAND_LINE, Settings

_SECRETS = ("password", "sslpassword", "oauth_client_secret")
_BY_ENVIRONMENT = "environment "


@dataclass(frozen=True, slots=True)
class Commands:
    """*database* is what psql takes and *options* what webhookd takes, both as the shell reads them."""

    database: str
    options: str = ""

    def sql(self, *statements: str) -> str:
        """Return the psql command that runs *statements*, each in a transaction of its own."""
        return " ".join(["psql", self.database, *(f"-c {_quoted(statement)}" for statement in statements)])

    def webhookd(self, words: str = "") -> str:
        """Return the command `webhookd` *words*."""
        return " ".join(part for part in ("webhookd", words, self.options) if part)


def commands_for(settings: Settings, dsn: str) -> Commands:
    """Return commands for the database at *dsn*, which is the one that *settings* lead to."""
    source = settings.sources["dsn"]
    if settings.config.dsn is not None and source.startswith(_BY_ENVIRONMENT):
        return Commands(f'"${source.removeprefix(_BY_ENVIRONMENT)}"')
    harmless = {name: value for name, value in conninfo_to_dict(dsn).items() if name not in _SECRETS}
    database = _quoted(make_conninfo("", **harmless))
    if settings.config.dsn is None:
        folder = settings.config.embedded
        return Commands(database, f"--embedded {_quoted(folder)}" if folder else "")
    if source == COMMAND_LINE:
        return Commands(database, f"--dsn {database}")
    return Commands(database, f"--config {_quoted(source.removeprefix('file '))}")


def _quoted(text: str) -> str:
    """Quote for the shell; SQL has apostrophes, which read better between double quotes."""
    if "'" in text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return shlex.quote(text)
