"""The configuration's options on every command, and the settings that they lead to."""

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.core import ParameterSource

from webhookd.config import load
from webhookd.config.kinds import Flag, Folder, Networks, Ports, Seconds
from webhookd.config.load import FILE, LoadedConfig
from webhookd.config.options import DEFAULTS, OPTIONS

_GENERAL = "General"


class SectionedOption(click.Option):
    """An option that knows its section of the help text."""

    def __init__(self, *args: Any, section: str = _GENERAL, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.section = section


class SectionedGroup(click.Group):
    """A group whose help lists the options by section, the commands first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", _GENERAL), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records, col_max=26)


Command = Callable[..., Any]
TARGET_OPTIONS = ("allow_http", "allow_network", "deny_network", "allow_port")


def config_options(names: Iterable[str]) -> Callable[[Command], Command]:
    """Give a command options of the configuration.

    Values stay as they were typed: `config.load` parses them.
    """

    def decorate(command: Command) -> Command:
        for name in reversed(list(names)):
            command = _option_of(name)(command)
        return command

    return decorate


def connection_options(command: Command) -> Command:
    """Give a command `--dsn`, `--embedded` and `--config`."""
    return config_file_option(config_options(("dsn", "embedded"))(command))


def egress_options(command: Command) -> Command:
    """Give a command the options that say where deliveries may go."""
    return config_options(TARGET_OPTIONS)(command)


def config_file_option(command: Command) -> Command:
    """Give a command `--config`."""
    text = "TOML file with any of the options below as keys."
    return click.option("--" + FILE, metavar="FILE", help=text, cls=SectionedOption)(command)


def load_settings(ctx: click.Context, *, with_psycopg: bool = True) -> LoadedConfig:
    """Return the settings for the command of *ctx*: its options win over those given before it.

    Raise `UnusableError` for a value that cannot be used.
    """
    command_line = {
        name: value
        for context in _from_root(ctx)
        for name, value in context.params.items()
        if (name in OPTIONS or name == FILE)
        and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    return load.load(command_line, with_psycopg=with_psycopg)


def _from_root(ctx: click.Context) -> list[click.Context]:
    chain = [ctx]
    while chain[0].parent is not None:
        chain.insert(0, chain[0].parent)
    return chain


def _option_of(name: str) -> Callable[[Command], Command]:
    option = OPTIONS[name]
    flag = load.flag_of(name)
    keywords: dict[str, Any] = {
        "help": option.help + _shown_default(name),
        "section": option.section,
    }
    match option.kind:
        case Flag():
            flag, keywords["default"] = f"{flag}/--no-{flag[2:]}", None
        case Folder():
            # Without a value it means the default folder. The next word is taken as the folder
            # unless it is an option.
            keywords |= {"is_flag": False, "flag_value": "true", "metavar": option.kind.metavar}
        case Networks() | Ports():
            keywords |= {"multiple": True, "metavar": option.kind.metavar}
        case _:
            keywords["metavar"] = option.kind.metavar
    return click.option(flag, name, cls=SectionedOption, **keywords)


def _shown_default(name: str) -> str:
    default = DEFAULTS[name]
    if default is None or default is False or default == ():
        return ""
    unit = " s" if isinstance(OPTIONS[name].kind, Seconds) else ""
    return (
        f"  [default: {default:g}{unit}]"
        if isinstance(default, float)
        else f"  [default: {default}]"
    )
