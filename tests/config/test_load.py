"""The configuration: where values come from, which are refused, and how the refusal reads."""

import os
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from webhookd.config import load as config
from webhookd.config.load import LoadedConfig
from webhookd.config.options import OPTIONS, Config
from webhookd.errors import UnusableError


def load(
    command_line: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> LoadedConfig:
    """Load with *environ* as the whole environment."""
    with patch.dict(os.environ, environ or {}, clear=True):
        return config.load({**(command_line or {}), **({"config": file} if file else {})})


def refused(
    command_line: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> str:
    with pytest.raises(UnusableError) as error:
        load(command_line, environ, file)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "webhookd.toml"


def test_without_any_source_the_defaults_hold() -> None:
    settings = load()
    assert settings.config == Config()
    assert settings.config.workers == 3
    assert set(settings.sources.values()) == {"default"}


def test_every_option_has_help_and_a_default_that_its_own_kind_accepts() -> None:
    for item in fields(Config):
        option = OPTIONS[item.name]
        assert option.help.endswith("."), item.name
        assert option.kind.allowed
        if item.default is not None:
            assert option.kind.parse(item.default) == item.default


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(toml: Path) -> None:
    toml.write_text('workers = 5\nthreads = 5\nrate_burst = 5\nnode = "from-file"\n')
    environ = {
        "WEBHOOKD_WORKERS": "6",
        "WEBHOOKD_THREADS": "6",
        "WEBHOOKD_CONFIG": str(toml),
        "WEBHOOKD_NODE": "",
    }
    settings = load({"workers": "7"}, environ)
    assert (settings.config.workers, settings.config.threads, settings.config.rate_burst) == (
        7,
        6,
        5,
    )
    assert settings.config.node == "from-file", "an empty variable is none"
    assert settings.sources["workers"] == "command line"
    assert settings.sources["threads"] == "environment WEBHOOKD_THREADS"
    assert settings.sources["rate_burst"] == f"file {toml}"
    assert settings.sources["retry_max"] == "default"


@pytest.mark.parametrize("given", list(product((False, True), repeat=4)))
def test_of_all_sources_that_name_a_database_the_strongest_wins(
    given: tuple[bool, ...], toml: Path
) -> None:
    by_line, by_variable, by_file, by_url = given
    toml.write_text('dsn = "host=file"' if by_file else "")
    settings = load(
        {"dsn": "host=line"} if by_line else {},
        {
            "WEBHOOKD_DSN": "host=variable" if by_variable else "",
            "DATABASE_URL": "host=url" if by_url else "",
        },
        toml,
    )
    strongest = [
        ("host=line", "command line"),
        ("host=variable", "environment WEBHOOKD_DSN"),
        ("host=file", f"file {toml}"),
        ("host=url", "environment DATABASE_URL"),
        (None, "default"),
    ][[*given, True].index(True)]
    assert (settings.config.dsn, settings.sources["dsn"]) == strongest


def test_the_config_option_wins_over_its_variable(toml: Path) -> None:
    toml.write_text("workers = 5")
    assert load(file=toml, environ={"WEBHOOKD_CONFIG": "/nowhere"}).config.workers == 5


def test_keys_of_the_file_may_be_written_with_dashes(toml: Path) -> None:
    toml.write_text('retry-base = "250ms"\nallow-network = ["10.0.0.0/8"]\nallow-http = true')
    loaded = load(file=toml).config
    assert (loaded.retry_base, loaded.allow_network, loaded.allow_http) == (
        0.25,
        ("10.0.0.0/8",),
        True,
    )


def test_database_url_is_the_weakest_source_of_a_dsn(toml: Path) -> None:
    environ = {"DATABASE_URL": "postgresql://url/x"}
    settings = load(environ=environ)
    assert (settings.config.dsn, settings.sources["dsn"]) == (
        "postgresql://url/x",
        "environment DATABASE_URL",
    )
    toml.write_text('dsn = "host=file"')
    assert load(environ=environ, file=toml).config.dsn == "host=file"
    assert load(environ={**environ, "WEBHOOKD_DSN": "host=variable"}).config.dsn == "host=variable"


def test_the_stronger_of_dsn_and_embedded_wins_and_a_tie_is_refused() -> None:
    environ = {"DATABASE_URL": "postgresql://url/x", "WEBHOOKD_EMBEDDED": "yes"}
    settings = load(environ=environ)
    assert (settings.config.dsn, settings.config.embedded) == (None, "")
    assert settings.sources["dsn"] == "overridden by embedded (environment WEBHOOKD_EMBEDDED)"
    settings = load({"dsn": "host=line"}, environ)
    assert (settings.config.dsn, settings.config.embedded) == ("host=line", None)
    assert refused({"dsn": "host=a", "embedded": "/b"}).startswith(
        "--dsn and --embedded cannot be used together"
    )


@pytest.mark.parametrize(
    ("raw", "value"),
    [("1", ""), ("TRUE", ""), ("no", None), ("/srv/pg", "/srv/pg"), (True, ""), (False, None)],
)
def test_embedded_is_a_switch_or_a_folder(raw: object, value: str | None) -> None:
    assert load({"embedded": raw}).config.embedded == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [("1", True), ("0", False), ("true", True), ("False", False), ("yes", True), ("no", False)],
)
def test_switches_in_the_environment(raw: str, value: bool) -> None:
    assert load(environ={"WEBHOOKD_ALLOW_HTTP": raw}).config.allow_http is value


@pytest.mark.parametrize(
    ("raw", "value"),
    [("2", 2.0), ("0.5", 0.5), ("500ms", 0.5), ("5 s", 5.0), ("2m", 120.0), ("1h", 3600.0)],
)
def test_durations_may_carry_a_unit(raw: str, value: float) -> None:
    assert load({"drain_timeout": raw}).config.drain_timeout == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [("0", 0), ("500M", 500 << 20), ("1.5g", 3 << 29), ("262144 KiB", 1 << 28), (1 << 30, 1 << 30)],
)
def test_amounts_of_memory_may_carry_a_unit(raw: object, value: int) -> None:
    assert load({"worker_max_rss": raw}).config.worker_max_rss == value


def test_ports_are_listed_with_commas_or_repeated(toml: Path) -> None:
    assert load(environ={"WEBHOOKD_ALLOW_PORT": "443, 8443"}).config.allow_port == (443, 8443)
    assert load({"allow_port": ("443", "8443,9443")}).config.allow_port == (443, 8443, 9443)
    toml.write_text("allow_port = [443, 8443]")
    assert load(file=toml).config.allow_port == (443, 8443)


def test_networks_are_listed_with_commas_or_repeated() -> None:
    assert load(environ={"WEBHOOKD_ALLOW_NETWORK": "10.0.0.0/8, ::1"}).config.allow_network == (
        "10.0.0.0/8",
        "::1/128",
    )
    assert load({"allow_network": ("10.0.0.0/8", "127.0.0.0/8,fd00::/8")}).config.allow_network == (
        "10.0.0.0/8",
        "127.0.0.0/8",
        "fd00::/8",
    )


BAD: list[tuple[str, Any, str]] = [
    ("workers", "0", "a whole number from 1 to 256"),
    ("workers", "257", "a whole number from 1 to 256"),
    ("workers", "three", "a whole number from 1 to 256"),
    ("workers", "1.5", "a whole number from 1 to 256"),
    ("workers", "", "a whole number"),
    ("workers", "٣", "a whole number"),
    ("threads", "1025", "a whole number from 1 to 1024"),
    ("metrics_port", "65536", "a whole number from 0 to 65535"),
    ("timeout", "0", "above 0"),
    ("timeout", "-1", "above 0"),
    ("timeout", "nan", "above 0"),
    ("timeout", "inf", "above 0"),
    ("timeout", "601", "at most 600 s"),
    ("timeout", "5 parsecs", "above 0"),
    ("retry_base", "0", "above 0"),
    ("rate_limit", "-0.1", "0, or a number from 3.86e-07 (one in 30 days) to 1000000"),
    ("rate_limit", "1e-14", "0, or a number from"),
    ("rate_limit", "1e999", "0, or a number from"),
    ("keep_log", "-1", "a number from 0 to 36500"),
    ("rate_burst", "0", "a whole number from 1"),
    ("circuit_threshold", "0", "a whole number from 1"),
    ("max_in_flight", "0", "a whole number from 1"),
    ("worker_max_rss", "200", "at least 128M"),
    ("worker_max_rss", "-1G", "at least 128M"),
    ("worker_max_rss", "1T", "with a unit: K, M, G"),
    ("max_body", "0", "must be an amount of memory of at least 64K"),
    ("max_body", "63K", "at least 64K"),
    ("worker_max_deliveries", "-1", "a whole number from 0"),
    ("node", "a/b", "A-Z a-z 0-9"),
    ("node", "a" * 65, "1 to 64"),
    ("node", "a\n", "1 to 64"),
    ("log_format", "xml", "one of text, json"),
    ("log_level", "loud", "one of debug, info, warning, error"),
    ("allow_http", "perhaps", "yes or no"),
    ("allow_network", "10.0.0.1/8", "write 10.0.0.0/8"),
    ("allow_network", "10.0.0.0/33", "networks such as"),
    ("allow_network", "localhost", "localhost is not a network"),
    ("deny_network", "10.0.0.1/8", "write 10.0.0.0/8"),
    ("allow_port", "0", "ports from 1 to 65535"),
    ("allow_port", "65536", "ports from 1 to 65535"),
    ("allow_port", "https", "ports from 1 to 65535"),
    ("metrics_host", "a b", "an address or a host name"),
]


@pytest.mark.parametrize(("name", "raw", "allowed"), BAD)
def test_a_bad_value_is_refused_with_its_name_the_value_and_what_is_allowed(
    name: str, raw: str, allowed: str
) -> None:
    message = refused({name: raw})
    assert message.startswith(config.flag_of(name) + " must be ")
    assert allowed in message
    assert repr(raw) in message
    if raw:
        assert refused(environ={config.variable_of(name): raw}).startswith(
            config.variable_of(name) + " must be "
        )


@pytest.mark.parametrize(
    "line",
    [
        "workers = true",
        "workers = 1.0",
        "timeout = true",
        "allow_network = [1]",
        "allow_port = [true]",
        "allow_port = 443.0",
        "dsn = 1",
        "node = 1",
        "allow_http = 1",
    ],
)
def test_a_value_of_the_wrong_type_in_the_file_names_the_file(line: str, toml: Path) -> None:
    toml.write_text(line)
    assert refused(file=toml).startswith(f"{line.partition(' ')[0]} in {toml} must be ")


def test_an_unknown_key_names_the_file_and_the_nearest_known_key(toml: Path) -> None:
    toml.write_text("wrokers = 3")
    assert refused(file=toml) == f"unknown key 'wrokers' in {toml}: did you mean workers?"
    toml.write_text("[webhookd]\nworkers = 3")
    assert "unknown key 'webhookd'" in refused(file=toml)
    toml.write_text("retry-base = 1\nretry_base = 2")
    assert "given twice" in refused(file=toml)


def test_a_file_that_cannot_be_read_is_refused(toml: Path) -> None:
    assert "No such file" in refused(file=toml)
    toml.write_text("workers =")
    assert "not valid TOML" in refused(file=toml)
    toml.write_bytes(b"\xff")
    assert "not valid TOML" in refused(file=toml)


def test_the_last_workers_port_must_exist() -> None:
    assert load({"metrics_port": "65533", "workers": "3"}).config.metrics_port == 65533
    message = refused({"metrics_port": "65534"})
    assert message.startswith("--metrics-port and --workers")
    assert "65536" in message
    assert "at most 65533 with 3 workers" in message
    assert load({"metrics_port": "0", "workers": "256"}).config.metrics_port == 0


def test_the_first_delay_must_not_exceed_the_longest() -> None:
    assert load({"retry_base": "7", "retry_max": "7"}).config.retry_max == 7
    message = refused({"retry_base": "8"}, {"WEBHOOKD_RETRY_MAX": "7"})
    assert message.startswith("--retry-base and WEBHOOKD_RETRY_MAX: the first delay, 8 s, ")


@pytest.mark.parametrize(
    "dsn",
    [
        "hunter2",
        "postgresql://u:hunter2%zz@h/x",
        "postgresql+psycopg2://u:hunter2@h/x",
        "password='hunter2",
        "password=hun hunter2",
        "postgresql://u:hunter2@[::1/x",
        "mysql://u:hunter2@h/x",
        "",
    ],
)
def test_a_malformed_dsn_is_refused_and_never_repeated(dsn: str) -> None:
    message = refused({"dsn": dsn})
    assert message.startswith("--dsn ")
    assert "hunter2" not in message
    if dsn:
        assert refused(environ={"DATABASE_URL": dsn}).startswith("DATABASE_URL ")


def test_an_unknown_parameter_in_a_dsn_is_refused() -> None:
    assert "connection string" in refused({"dsn": "host=h sslmoed=require"})


def test_secrets_are_not_in_the_repr() -> None:
    assert "hunter2" not in repr(
        load({"dsn": "postgresql://u:hunter2@h/x", "listen_dsn": "password=hunter2"}).config
    )


def test_reload_reads_file_and_environment_anew_and_keeps_the_command_line(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml.write_text("workers = 4\nthreads = 4")
    settings = load({"workers": "9"}, {"WEBHOOKD_RATE_BURST": "4"}, toml)
    assert settings.config.rate_burst == 4
    toml.write_text("workers = 5\nthreads = 5")
    monkeypatch.setenv("WEBHOOKD_RATE_BURST", "5")
    again = settings.reload()
    assert (again.config.workers, again.config.threads, again.config.rate_burst) == (9, 5, 5)
    assert again.reload().config == again.config
    toml.write_text("wrokers = 5")
    with pytest.raises(UnusableError):
        settings.reload()
