"""What a held webhook needs: whether its row or the service's options have to change, and how."""

import re
from collections.abc import Sequence

from webhookd.core.model import WebhookSettings
from webhookd.transport import request

_USUAL_PORTS = (80, 443, 8080)
_OPTION = re.compile(r"--allow-\w+")
# What the option has to name, as the reason says it.
_VALUES = {
    "--allow-network": re.compile(r"the address (\S+) is"),
    "--allow-port": re.compile(r"\bport (\d+)"),
}


def reason_of(settings: WebhookSettings, stored: str | None) -> str | None:
    """Return why nothing is sent to the webhook; None: something is, or a worker has to judge.

    *stored* is what a worker found by its own options, which this process does not know. What no
    option changes is judged here.
    """
    return stored or next((reason for _, reason in request.unusable(settings)), None)


def column_of(settings: WebhookSettings, reason: str) -> str:
    """Return the column of the webhook's row that *reason* is about."""
    return next((column for column, why in request.unusable(settings) if why == reason), "url")


def missing_option(reason: str) -> str | None:
    """Return the option with its value that would permit what *reason* refuses; None: none does."""
    option = _OPTION.search(reason)
    if option is None:
        return None
    value = _VALUES[option[0]].search(reason) if option[0] in _VALUES else None
    return f"{option[0]} {value[1]}" if value else option[0]


def in_words(option: str) -> str:
    """Return what a person has to know who adds *option* to the service's options."""
    if option.startswith("--allow-port"):
        return f"{option} (and every other port that is needed: it replaces the usual ones)"
    return option


def to_add(option: str, allow_port: Sequence[int]) -> str:
    """Return what has to be added to a command line with these ports to permit what *option* names.

    The first --allow-port replaces the usual ports, so it is said together with them.
    """
    if option.startswith("--allow-port") and not allow_port:
        return " ".join([*(f"--allow-port {port}" for port in _USUAL_PORTS), option])
    return option


def showing(settings: WebhookSettings, reason: str) -> str:
    """Return the statement that shows what has to be corrected. No statement that corrects it can
    be given: what is right only the operator knows.
    """
    column = column_of(settings, reason)
    return f"SELECT {column} FROM pggit.webhooks WHERE webhook_id = {settings.webhook_id}"
