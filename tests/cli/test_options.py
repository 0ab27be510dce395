"""Options of the configuration before and after a subcommand: which of them wins."""

from pathlib import Path

import click
import pytest

from webhookd.cli.options import config_file_option, config_options, load_settings
from webhookd.config.load import LoadedConfig


@click.group()
@config_file_option
@config_options(["workers", "threads", "embedded", "allow_http", "allow_network"])
def group(**_: object) -> None:
    pass


@group.command()
@config_file_option
@config_options(["workers", "embedded", "allow_http", "allow_network"])
@click.pass_context
def command(ctx: click.Context, /, **_: object) -> LoadedConfig:
    return load_settings(ctx, with_psycopg=False)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("WEBHOOKD_WORKERS", "5")


def settings_of(*words: str) -> LoadedConfig:
    settings = group.main(list(words), standalone_mode=False)
    assert isinstance(settings, LoadedConfig)
    return settings


@pytest.mark.parametrize(
    ("words", "workers", "source"),
    [
        (["command"], 5, "environment WEBHOOKD_WORKERS"),
        (["--workers", "6", "command"], 6, "command line"),
        (["command", "--workers", "7"], 7, "command line"),
        (["--workers", "6", "command", "--workers", "7"], 7, "command line"),
        (["--workers", "not read", "command", "--workers", "7"], 7, "command line"),
    ],
)
def test_the_subcommand_s_option_wins_over_the_group_s_and_both_over_the_environment(
    words: list[str], workers: int, source: str
) -> None:
    settings = settings_of(*words)
    assert (settings.config.workers, settings.sources["workers"]) == (workers, source)


def test_the_file_may_be_named_before_and_after_the_subcommand(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("threads = 8")
    second.write_text("threads = 9")
    assert settings_of("--config", str(first), "command").config.threads == 8
    assert settings_of("command", "--config", str(second)).config.threads == 9
    both = settings_of("--config", str(first), "command", "--config", str(second))
    assert both.config.threads == 9
    second.write_text("threads = 10")
    assert both.reload().config.threads == 10


def test_switches_folders_and_lists_reach_the_configuration_as_they_were_given() -> None:
    config = settings_of(
        *("--embedded", "--allow-http", "--allow-network", "10.0.0.0/8", "--allow-network", "::1"),
        *("command", "--no-allow-http"),
    ).config
    assert (config.embedded, config.allow_http) == ("", False)
    assert config.allow_network == ("10.0.0.0/8", "::1/128")
