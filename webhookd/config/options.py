"""The options: their names, defaults, kinds and help, and the configuration as a value.

How a value is found, on the command line, in the environment or in a file, is in config/load.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from webhookd.config.kinds import (
    MOST_RETRIES,
    Bytes,
    Choice,
    Dsn,
    Flag,
    Folder,
    Kind,
    Networks,
    Number,
    Pattern,
    Ports,
    Seconds,
    Whole,
    growth,
    rate,
)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of the configuration, besides its name and default."""

    section: str
    help: str
    kind: Kind


def _option(default: Any, section: str, kind: Kind, text: str) -> Any:
    return field(
        default=default, repr=not kind.secret, metadata={"option": Option(section, text, kind)}
    )


_DATABASE, _PROCESSES, _TARGETS = "Database", "Processes", "Where deliveries may go"
_DELIVERY, _RETENTION, _LOGS = "Delivery (a webhook's own settings win)", "Retention", "Logs"


@dataclass(frozen=True, slots=True)
class Config:
    """The values of all options. Durations are seconds; *embedded* is None, a folder, or "" (the
    default one).
    """

    dsn: str | None = _option(
        None,
        _DATABASE,
        Dsn(),
        "PostgreSQL database with the queue. Without it, `webhookd` starts an embedded PostgreSQL, "
        "and its commands use the one that runs.",
    )
    listen_dsn: str | None = _option(
        None,
        _DATABASE,
        Dsn(),
        "Connection to the same database for LISTEN that bypasses a transaction-pooling pgbouncer.",
    )
    embedded: str | None = _option(
        None, _DATABASE, Folder(), "Use an embedded PostgreSQL, with its data in DIR."
    )
    node: str | None = _option(
        None,
        _PROCESSES,
        Pattern(r"[A-Za-z0-9_.-]{1,64}", "1 to 64 of the characters A-Z a-z 0-9 _ . -", "NAME"),
        "Name of this host, if several share a database: workers are NAME/worker-1 and so on.",
    )
    workers: int = _option(3, _PROCESSES, Whole(1, 256), "Worker processes.")
    threads: int = _option(
        128, _PROCESSES, Whole(1, 1024), "Maximum number of sender threads per worker."
    )
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
        "Webhooks with metrics of their own; the others are counted together.",
    )
    drain_timeout: float = _option(
        30.0, _PROCESSES, Seconds(), "Time to finish deliveries in flight after a stop signal."
    )
    heartbeat_timeout: float = _option(
        30.0, _PROCESSES, Seconds(), "A worker without a heartbeat for this long is replaced."
    )
    worker_max_rss: int = _option(
        0,
        _PROCESSES,
        Bytes(least=128 << 20),
        "A worker whose resident memory exceeds this is replaced; 0 is no limit.",
    )
    worker_max_deliveries: int = _option(
        0,
        _PROCESSES,
        Whole(0, 10**15),
        "A worker is replaced after this many deliveries; 0 is no limit.",
    )
    allow_http: bool = _option(False, _TARGETS, Flag(), "Allow plain http.")
    allow_network: tuple[str, ...] = _option(
        (), _TARGETS, Networks(), "Allow targets in this private or loopback network; repeatable."
    )
    deny_network: tuple[str, ...] = _option(
        (), _TARGETS, Networks(), "Deny targets in this network, whatever else allows; repeatable."
    )
    allow_port: tuple[int, ...] = _option(
        (),
        _TARGETS,
        Ports(),
        "Allow this port alone, instead of any for https, 80 and 8080 for http; repeatable. "
        "Allowed networks keep all ports.",
    )
    timeout: float = _option(
        5.0,
        _DELIVERY,
        Seconds(longest_s=600.0),
        "Limit for one whole exchange, from DNS to the last byte.",
    )
    max_in_flight: int = _option(
        50,
        _DELIVERY,
        Whole(1, 1_000_000),
        "Concurrent exchanges with one webhook, over all workers and hosts.",
    )
    rate_limit: float = _option(
        10.0, _DELIVERY, rate(1_000_000), "Attempts per second for one webhook; 0 is no limit."
    )
    rate_burst: int = _option(
        20,
        _DELIVERY,
        Whole(1, 1_000_000),
        "Attempts that one webhook may get at once after a pause.",
    )
    max_retries: int = _option(
        10,
        _DELIVERY,
        Whole(0, MOST_RETRIES),
        "Attempts after the first one; a delivery's own max_retries wins.",
    )
    retry_base: float = _option(5.0, _DELIVERY, Seconds(), "Delay before the first retry.")
    retry_factor: float = _option(4.0, _DELIVERY, growth(), "Growth of each further delay.")
    retry_max: float = _option(
        28_800.0, _DELIVERY, Seconds(), "Longest delay between retries, Retry-After included."
    )
    disable_after: float = _option(
        0.0, _DELIVERY, Seconds(zero=True), "A webhook that only failed for so long is disabled."
    )
    give_up_after: float = _option(
        0.0, _DELIVERY, Seconds(zero=True), "A delivery that waits for longer than this fails."
    )
    circuit_threshold: int = _option(
        5, _DELIVERY, Whole(1, 1_000_000), "Consecutive failures that open a webhook's circuit."
    )
    circuit_open: float = _option(
        60.0, _DELIVERY, Seconds(), "Time that an open circuit waits before its probe."
    )
    max_body: int = _option(
        1 << 20,
        _DELIVERY,
        Bytes(least=64 << 10, zero=False),
        "An INSERT with a longer body is refused. Workers keep it in the database: give it to all.",
    )
    keep_delivered: float = _option(
        7.0,
        _RETENTION,
        Number(36_500, "DAYS"),
        "Keep delivered rows for this long; fractions are allowed, 0 is for ever.",
    )
    keep_failed: float = _option(
        30.0,
        _RETENTION,
        Number(36_500, "DAYS"),
        "Keep permanently failed deliveries for this long; 0 is for ever.",
    )
    keep_log: float = _option(
        30.0,
        _RETENTION,
        Number(36_500, "DAYS"),
        "Keep the attempt log for this long; 0 is for ever.",
    )
    log_format: str = _option(
        "text", _LOGS, Choice("text", "json"), "Lines of key=value or of JSON."
    )
    log_level: str = _option(
        "info", _LOGS, Choice("debug", "info", "warning", "error"), "Lowest level that is logged."
    )


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {item.name: item.metadata["option"] for item in fields(Config)}
)
DEFAULTS: Mapping[str, Any] = MappingProxyType({item.name: item.default for item in fields(Config)})
