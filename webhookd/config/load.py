"""The configuration: one frozen value, built before the fork from the command line, the environment
and a TOML file.

Every option exists under three names: `--retry-base`, `WEBHOOKD_RETRY_BASE`, and `retry_base` in
the file. Click resolves them: the command line wins over the environment, the environment over the
file (click's default map), the file over the default.
"""

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from click.core import ParameterSource

from webhookd.config.kinds import check_dsn
from webhookd.config.options import OPTIONS, Config
from webhookd.errors import UnusableError

ENVIRONMENT_PREFIX = "WEBHOOKD_"
COMMAND_LINE = "command line"
DEFAULT = "default"

FILE = "config"  # the option that names the file; no part of the configuration itself
_URL_VARIABLE = "DATABASE_URL"
_FROM_URL = f"environment {_URL_VARIABLE}"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, and for each option the words for where its value came from.

    *reload* reads the file and the environment anew, with the same command line.
    """

    config: Config
    sources: Mapping[str, str]
    reload: Callable[[], "LoadedConfig"]


def load(command_line: Mapping[str, object], *, with_psycopg: bool = True) -> LoadedConfig:
    """Return the settings in force. Raise `UnusableError`, one line, for what cannot be used.

    *command_line* maps names of options, and `config`, to what was given there. *with_psycopg* lets
    libpq judge the DSNs. The supervisor's parent does without: it must not load libpq before it
    forks.
    """
    try:
        context = _command().make_context("webhookd", _arguments(command_line))
    except click.BadParameter as error:
        assert error.ctx is not None and error.param is not None and error.param.name is not None
        name = _named(error.param.name, _source_of(error.ctx, error.param.name))
        raise UnusableError(f"{name} {error.message}") from error
    sources = {name: _source_of(context, name) for name in OPTIONS}
    values = {name: context.params[name] for name in OPTIONS if sources[name] != DEFAULT}
    _settle_database(values, sources)
    config = Config(**values)
    _check_together(config, sources)

    reload = partial(load, command_line, with_psycopg=with_psycopg)
    settings = LoadedConfig(config, MappingProxyType(sources), reload)
    if with_psycopg:
        check_dsns(settings)
    return settings


def check_dsns(settings: LoadedConfig) -> None:
    """Raise `UnusableError` for a DSN that libpq cannot parse. Imports psycopg."""
    for name in ("dsn", "listen_dsn"):
        dsn = getattr(settings.config, name)
        if dsn is not None:
            check_dsn(dsn, _named(name, settings.sources[name]))


def flag_of(name: str) -> str:
    """Return the command line's spelling of an option: `retry_base` is `--retry-base`."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return the environment's spelling of an option: `retry_base` is `WEBHOOKD_RETRY_BASE`."""
    return ENVIRONMENT_PREFIX + name.upper()


def _command() -> click.Command:
    """Return a command with all options. Its context resolves their values and sources.

    The commands that users run keep what was typed as it is (`cli.options`). They cannot resolve
    it: `--config` and the others may stand before the subcommand, after it, or both.
    """
    options = [click.Option(["--" + FILE], envvar=variable_of(FILE), is_eager=True, callback=_use)]
    for name, option in OPTIONS.items():
        # DATABASE_URL is weaker than the file, so it is not a second variable of `--dsn`.
        default = (lambda: os.environ.get(_URL_VARIABLE) or None) if name == "dsn" else None
        options.append(
            click.Option(
                [flag_of(name)], type=option.kind, envvar=variable_of(name), default=default
            )
        )
    return click.Command("webhookd", params=[*options], add_help_option=False)


def _arguments(given: Mapping[str, object]) -> list[str]:
    return [
        f"{flag_of(name)}={','.join(map(str, raw)) if isinstance(raw, tuple) else raw}"
        for name, raw in given.items()
    ]


def _use(context: click.Context, option: click.Parameter, file: str | None) -> str | None:
    # `--config` is eager: this runs before another option looks for its value in the default map.
    if file is not None:
        context.default_map = _read_file(Path(file))
    return file


def _source_of(context: click.Context, name: str) -> str:
    match context.get_parameter_source(name):
        case ParameterSource.COMMANDLINE:
            return COMMAND_LINE
        case ParameterSource.ENVIRONMENT:
            return f"environment {variable_of(name)}"
        case ParameterSource.DEFAULT_MAP:
            return f"file {Path(context.params[FILE])}"
        case _ if name == "dsn" and os.environ.get(_URL_VARIABLE):
            return _FROM_URL
        case _:
            return DEFAULT


def _read_file(file: Path) -> dict[str, object]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise UnusableError(
            f"cannot read the configuration file {file}: {fault.strerror}"
        ) from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise UnusableError(f"the configuration file {file} is not valid TOML: {fault}") from fault
    values: dict[str, object] = {}
    for key, raw in content.items():
        name = key.replace("-", "_")
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else "webhookd --print-config lists the known ones"
            )
            raise UnusableError(f"unknown key {key!r} in {file}: {hint}")
        if name in values:
            raise UnusableError(
                f"{name} is given twice in {file}, with a dash and with an underscore: keep one"
            )
        values[name] = raw
    return values


def _named(name: str, source: str) -> str:
    if source == COMMAND_LINE:
        return flag_of(name)
    return (
        f"{name} in {source.removeprefix('file ')}"
        if source.startswith("file ")
        else source.rpartition(" ")[2]
    )


def _settle_database(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Choose between a DSN and an embedded PostgreSQL: the stronger source wins, a tie is an
    error.
    """
    if values.get("dsn") is None or values.get("embedded") is None:
        return
    strength = {name: _strength(sources[name]) for name in ("dsn", "embedded")}
    if strength["dsn"] == strength["embedded"]:
        names = f"{_named('dsn', sources['dsn'])} and {_named('embedded', sources['embedded'])}"
        raise UnusableError(f"{names} cannot be used together: remove one of them")
    weaker, stronger = sorted(strength, key=lambda name: strength[name])
    values[weaker] = None
    sources[weaker] = f"overridden by {stronger} ({sources[stronger]})"


def _strength(source: str) -> int:
    if source == _FROM_URL:
        return 0
    return {"file": 1, "environment": 2, "command": 3}[source.partition(" ")[0]]


def _check_together(config: Config, sources: Mapping[str, str]) -> None:
    last_port = config.metrics_port + config.workers - 1
    if config.metrics_port and last_port > 65535:
        raise UnusableError(
            f"{_both('metrics_port', 'workers', sources)} together need ports up to {last_port}; "
            "65535 is the highest:"
            f" --metrics-port may be at most {65535 - config.workers + 1} with {config.workers} "
            "workers"
        )
    if config.retry_base > config.retry_max:
        raise UnusableError(
            f"{_both('retry_base', 'retry_max', sources)}: the first delay, "
            f"{config.retry_base:g} s,"
            f" must not exceed the longest, {config.retry_max:g} s"
        )


def _both(first: str, second: str, sources: Mapping[str, str]) -> str:
    named = (
        flag_of(name) if sources[name] == DEFAULT else _named(name, sources[name])
        for name in (first, second)
    )
    return " and ".join(named)
