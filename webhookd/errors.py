"""The faults that reach a person. Each message is one line: what is wrong, where, and what to do
about it.
"""


class WebhookdError(Exception):
    """A fault while running; the command that meets it prints the message and exits with 1."""


class UnusableError(WebhookdError):
    """Arguments, configuration or a schema that cannot be used as they are; exit code 2."""


def first_line(error: BaseException | None) -> str:
    """Return the first line of what *error* says: a driver's messages go on with hints and
    positions.
    """
    return str(error).strip().partition("\n")[0]
