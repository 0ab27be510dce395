"""How a command is written so that it can be pasted into a shell: with the database that was
examined, without its password.
"""

import shlex
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from webhookd.config.delivery import RUNNING_WORKERS
from webhookd.config.load import COMMAND_LINE, LoadedConfig, flag_of

_SECRETS = ("password", "sslpassword", "oauth_client_secret")
_BY_ENVIRONMENT = "environment "


@dataclass(frozen=True, slots=True)
class Commands:
    """*database* is what psql takes and *options* what every webhookd takes, as the shell reads
    them.

    *service*: what only the service takes besides, for all that the doctor was given. Without it a
    service that is started again would hold the deliveries to targets that it is meant to deliver
    to.
    """

    database: str
    options: str = ""
    service: str = ""

    def sql(self, *statements: str) -> str:
        """Return the psql command that runs *statements*, each in a transaction of its own."""
        return " ".join(
            ["psql", self.database, *(f"-c {_quoted(statement)}" for statement in statements)]
        )

    def webhookd(self, words: str) -> str:
        """Return the command `webhookd` *words*."""
        return " ".join(part for part in ("webhookd", words, self.options) if part)

    def start(self, change: str = "") -> str:
        """Return the command that starts the service, with the options *change* besides."""
        return " ".join(part for part in ("webhookd", change, self.options, self.service) if part)


def commands_for(settings: LoadedConfig, dsn: str) -> Commands:
    """Return commands for the database at *dsn*, which is the one that *settings* lead to."""
    source, service = settings.sources["dsn"], _service_options(settings)
    if settings.config.dsn is not None and source.startswith(_BY_ENVIRONMENT):
        return Commands(f'"${source.removeprefix(_BY_ENVIRONMENT)}"', service=service)
    harmless = {
        name: value for name, value in conninfo_to_dict(dsn).items() if name not in _SECRETS
    }
    database = _quoted(make_conninfo("", **harmless))
    if settings.config.dsn is None:
        folder = settings.config.embedded
        return Commands(database, f"--embedded {_quoted(folder)}" if folder else "", service)
    if source == COMMAND_LINE:
        return Commands(database, f"--dsn {database}", service)
    return Commands(database, f"--config {_quoted(source.removeprefix('file '))}", service)


def _service_options(settings: LoadedConfig) -> str:
    """Return the options of the command line but for those that name databases, and those that the
    running workers have, as the shell reads them.
    """
    words: list[str] = []
    for name, source in settings.sources.items():
        if source in (COMMAND_LINE, RUNNING_WORKERS) and name not in (
            "dsn",
            "embedded",
            "listen_dsn",
        ):
            value = getattr(settings.config, name)
            for one in value if isinstance(value, tuple) else (value,):
                words.append(
                    flag_of(name) if one is True else f"{flag_of(name)} {_quoted(str(one))}"
                )
    return " ".join(words)


def _quoted(text: str) -> str:
    """Quote for the shell; SQL has apostrophes, which read better between double quotes."""
    if "'" in text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return shlex.quote(text)
