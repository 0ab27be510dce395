"""The faults that reach a person. Each message is one line: what is wrong, where, and what to do about it."""


class WebhookdError(Exception):
    """A fault while running; the command that meets it prints the message and exits with 1."""


class UnusableError(WebhookdError):
    """Arguments, configuration or a schema that cannot be used as they are; exit code 2."""
