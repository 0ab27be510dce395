"""The kinds as click's parameter types, on a command without a configuration."""

import click
import pytest

from webhookd.config.kinds import Dsn, Kind, Networks, Ports, Seconds, Whole, rate


def converted(kind: Kind, text: str) -> object:
    command = click.Command(
        "command", params=[click.Option(["--option"], type=kind)], callback=lambda option: option
    )
    return command.main([f"--option={text}"], standalone_mode=False)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Whole(1, 9), "3", 3),
        (Seconds(), "2m", 120.0),
        (rate(100.0), "0", 0.0),
        (Networks(), "10.0.0.0/8,::1", ("10.0.0.0/8", "::1/128")),
        (Ports(), "443, 8443", (443, 8443)),
    ],
)
def test_a_command_gets_the_parsed_value(kind: Kind, text: str, value: object) -> None:
    assert converted(kind, text) == value
    assert kind.parse(value) == value, "click may convert a value twice"


def test_a_bad_value_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(click.BadParameter) as error:
        converted(Whole(1, 9), "ten")
    assert error.value.format_message() == (
        "Invalid value for '--option': must be a whole number from 1 to 9, not 'ten'"
    )


def test_a_secret_is_not_repeated() -> None:
    with pytest.raises(click.BadParameter) as error:
        converted(Dsn(), "hunter2")
    assert "hunter2" not in error.value.format_message()
