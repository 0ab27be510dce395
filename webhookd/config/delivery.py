"""The options that decide about delivery: workers store theirs in the database, and commands judge
by them.

They are those of two sections of the configuration, so that a new option of these belongs to them
by itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from webhookd.config.load import DEFAULT, LoadedConfig
from webhookd.config.options import DEFAULTS, OPTIONS, Config

RUNNING_WORKERS = "running workers"  # where a value came from, beside those of `LoadedConfig`

_SECTIONS = {OPTIONS[name].section for name in ("allow_http", "timeout")}
DELIVERY_OPTIONS = tuple(name for name, option in OPTIONS.items() if option.section in _SECTIONS)


def delivery_options(config: Config) -> dict[str, Any]:
    """Return these options of *config* by name, for JSON."""
    return {name: getattr(config, name) for name in DELIVERY_OPTIONS}


def with_delivery_options(settings: LoadedConfig, stored: Mapping[str, Any]) -> LoadedConfig:
    """Return *settings* with what workers have *stored*, except for options that were given a value
    here.

    A value that this version cannot read, or does not know, is left out: another version wrote it.
    """
    values: dict[str, Any] = {}
    for name in DELIVERY_OPTIONS:
        if settings.sources[name] == DEFAULT and stored.get(name) is not None:
            try:
                values[name] = OPTIONS[name].kind.parse(stored[name])
            except ValueError:
                continue
    from_workers = {name: RUNNING_WORKERS for name in values if values[name] != DEFAULTS[name]}
    return replace(
        settings,
        config=replace(settings.config, **values),
        sources=MappingProxyType({**settings.sources, **from_workers}),
    )
