"""The errors that people see. Each message is one line: what is wrong, where, and what to do."""


class WebhookdError(Exception):
    """An error while running; the command prints the message and exits with 1."""


class UnusableError(WebhookdError):
    """Arguments, configuration or a schema that cannot be used as they are; the command exits with
    2.
    """


def first_line(error: BaseException | None) -> str:
    """Return the first line of *error*'s message: a driver adds lines with hints and positions."""
    return str(error).strip().partition("\n")[0]
