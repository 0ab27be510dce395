"""The configuration: one frozen value, built before the fork from the command line, the environment
and a TOML file.

Every option exists under three names: `--retry-base`, `WEBHOOKD_RETRY_BASE`, and `retry_base` in
the file. The command line wins over the environment, the environment over the file, the file over
the default.
"""

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from webhookd.config.kinds import (
    Bytes,
    Choice,
    Dsn,
    Flag,
    Folder,
    Kind,
    Networks,
    Number,
    Pattern,
    Seconds,
    Whole,
    check_dsn,
    rate,
    shown,
)
from webhookd.errors import UnusableError

ENVIRONMENT_PREFIX = "WEBHOOKD_"
COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of one option besides its name and default. *secret* values never reach an
    error message.
    """

    section: str
    help: str
    kind: Kind
    secret: bool = False


def _option(default: Any, section: str, kind: Kind, text: str, *, secret: bool = False) -> Any:
    return field(
        default=default, repr=not secret, metadata={"option": Option(section, text, kind, secret)}
    )


_DATABASE, _PROCESSES, _TARGETS = "Database", "Processes", "Where deliveries may go"
_DELIVERY, _KEPT, _LOGS = "Delivery (a webhook's own settings win)", "What is kept", "Logs"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything webhookd can be told. Durations are seconds; *embedded* is None, a folder, or ""
    (the default one).
    """

    dsn: str | None = _option(
        None,
        _DATABASE,
        Dsn(),
        "PostgreSQL to work for; without one an embedded PostgreSQL is started.",
        secret=True,
    )
    listen_dsn: str | None = _option(
        None,
        _DATABASE,
        Dsn(),
        "Another way to the same database for LISTEN, past a transaction-pooling pgbouncer.",
        secret=True,
    )
    embedded: str | None = _option(
        None, _DATABASE, Folder(), "Start an embedded PostgreSQL, with its data in DIR."
    )
    node: str | None = _option(
        None,
        _PROCESSES,
        Pattern(r"[A-Za-z0-9_.-]{1,64}", "1 to 64 of the characters A-Z a-z 0-9 _ . -", "NAME"),
        "Name of this host, where several share a database: workers become NAME/worker-1 and so on.",
    )
    workers: int = _option(3, _PROCESSES, Whole(1, 256), "Worker processes.")
    threads: int = _option(64, _PROCESSES, Whole(1, 1024), "Sender threads a worker may grow to.")
    metrics_host: str = _option(
        "127.0.0.1",
        _PROCESSES,
        Pattern(r"[^\s/]{1,253}", "an address or a host name", "HOST"),
        "Address that serves /metrics, /healthz and /readyz.",
    )
    metrics_port: int = _option(
        8000,
        _PROCESSES,
        Whole(0, 65535),
        "Worker i serves on this port + i - 1; 0 takes free ports.",
    )
    metrics_webhooks: int = _option(
        200,
        _PROCESSES,
        Whole(0, 100_000),
        "Webhooks with metrics of their own; the rest are counted together.",
    )
    drain_timeout: float = _option(
        30.0, _PROCESSES, Seconds(), "Time to finish what is in flight when told to stop."
    )
    heartbeat_timeout: float = _option(
        30.0, _PROCESSES, Seconds(), "A worker silent for this long is replaced."
    )
    worker_max_rss: int = _option(
        0,
        _PROCESSES,
        Bytes(least=128 << 20),
        "A worker whose resident memory passes this is replaced; 0 is no limit.",
    )
    worker_max_deliveries: int = _option(
        0,
        _PROCESSES,
        Whole(0, 10**15),
        "A worker is replaced after so many deliveries; 0 is no limit.",
    )
    allow_http: bool = _option(False, _TARGETS, Flag(), "Permit plain http.")
    allow_network: tuple[str, ...] = _option(
        (), _TARGETS, Networks(), "Permit targets in this private or loopback network; repeatable."
    )
    timeout: float = _option(
        5.0, _DELIVERY, Seconds(longest_s=600.0), "For one whole exchange, DNS to last byte."
    )
    max_in_flight: int = _option(
        50,
        _DELIVERY,
        Whole(1, 1_000_000),
        "Exchanges with one webhook at a time, over all workers and hosts.",
    )
    rate_limit: float = _option(
        10.0, _DELIVERY, rate(1_000_000), "Attempts a second for one webhook; 0 is unlimited."
    )
    rate_burst: int = _option(
        20, _DELIVERY, Whole(1, 1_000_000), "Attempts one webhook may get at once after a pause."
    )
    retry_base: float = _option(
        5.0, _DELIVERY, Seconds(), "The first retry's delay; it doubles with each further one."
    )
    retry_max: float = _option(
        1800.0, _DELIVERY, Seconds(), "The longest delay between retries, Retry-After included."
    )
    circuit_threshold: int = _option(
        5, _DELIVERY, Whole(1, 1_000_000), "Consecutive failures that open a webhook's circuit."
    )
    circuit_open: float = _option(
        60.0, _DELIVERY, Seconds(), "How long an open circuit waits before its probe."
    )
    keep_delivered: float = _option(
        7.0,
        _KEPT,
        Number(36_500, "DAYS"),
        "Keep what was delivered for so long; fractions are fine, 0 is for ever.",
    )
    keep_failed: float = _option(
        30.0, _KEPT, Number(36_500, "DAYS"), "Keep what failed for good; 0 is for ever."
    )
    keep_log: float = _option(
        30.0, _KEPT, Number(36_500, "DAYS"), "Keep the attempt log; 0 is for ever."
    )
    log_format: str = _option(
        "text", _LOGS, Choice(("text", "json")), "Lines of key=value, or of JSON."
    )
    log_level: str = _option(
        "info", _LOGS, Choice(("debug", "info", "warning", "error")), "The least that is logged."
    )


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {item.name: item.metadata["option"] for item in fields(Config)}
)
DEFAULTS: Mapping[str, Any] = MappingProxyType({item.name: item.default for item in fields(Config)})


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, and for each option the words for where it came from.

    *reload* reads the file and the environment anew, with the same command line.
    """

    config: Config
    sources: Mapping[str, str]
    reload: Callable[[], "LoadedConfig"]


def load(
    command_line: Mapping[str, object],
    *,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
    with_psycopg: bool = True,
) -> LoadedConfig:
    """Return the settings in force. Raise UnusableError, one line, for what cannot be used.

    *command_line* maps option names to what was given there, *file* is the argument of `--config`.
    *with_psycopg* has libpq judge the DSNs; the supervisor's parent does without, since it must not
    load libpq before it forks.
    """
    given = _gather(command_line, environ, _file_to_read(file, environ))
    values = {name: _parse(name, raw, source) for name, (raw, source) in given.items()}
    sources = {name: given[name][1] if name in given else DEFAULT for name in OPTIONS}
    _settle_database(values, sources)
    config = Config(**values)
    _check_together(config, sources)

    def reload() -> LoadedConfig:
        return load(command_line, environ=environ, file=file, with_psycopg=with_psycopg)

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


def _file_to_read(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if file is None and environ.get(ENVIRONMENT_PREFIX + "CONFIG"):
        return Path(environ[ENVIRONMENT_PREFIX + "CONFIG"])
    return file


def _gather(
    command_line: Mapping[str, object], environ: Mapping[str, str], file: Path | None
) -> dict[str, tuple[object, str]]:
    """Return each given option's raw value and source, the weakest source first so that stronger
    ones overwrite it.
    """
    given: dict[str, tuple[object, str]] = {}
    if environ.get("DATABASE_URL"):
        given["dsn"] = (environ["DATABASE_URL"], "environment DATABASE_URL")
    if file is not None:
        given.update({name: (raw, f"file {file}") for name, raw in _read_file(file).items()})
    for name in OPTIONS:
        # An empty variable is one that a compose file or unit left open, not a value.
        if environ.get(variable_of(name)):
            given[name] = (environ[variable_of(name)], f"environment {variable_of(name)}")
    given.update({name: (raw, COMMAND_LINE) for name, raw in command_line.items()})
    return given


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


def _parse(name: str, raw: object, source: str) -> Any:
    option = OPTIONS[name]
    try:
        return option.kind.parse(raw)
    except ValueError as fault:
        given = "the value given (hidden)" if option.secret else shown(raw)
        detail = f" ({fault})" if str(fault) else ""
        raise UnusableError(
            f"{_named(name, source)} must be {option.kind.allowed}, not {given}{detail}"
        ) from fault


def _named(name: str, source: str) -> str:
    if source == COMMAND_LINE:
        return flag_of(name)
    return (
        f"{name} in {source.removeprefix('file ')}"
        if source.startswith("file ")
        else source.rpartition(" ")[2]
    )


def _settle_database(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Decide between a DSN and an embedded PostgreSQL: the stronger source wins, a tie is an error."""
    if values.get("dsn") is None or values.get("embedded") is None:
        return
    strength = {name: _strength(sources[name]) for name in ("dsn", "embedded")}
    if strength["dsn"] == strength["embedded"]:
        names = f"{_named('dsn', sources['dsn'])} and {_named('embedded', sources['embedded'])}"
        raise UnusableError(
            f"{names} exclude each other: keep the database or the embedded PostgreSQL"
        )
    weaker, stronger = sorted(strength, key=lambda name: strength[name])
    values[weaker] = None
    sources[weaker] = f"set aside for {stronger} ({sources[stronger]})"


def _strength(source: str) -> int:
    if source == "environment DATABASE_URL":
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
