"""How a benchmark ends: an error is one line, and everything that it started has stopped."""

import sys
from collections.abc import Callable

from webhookd.errors import WebhookdError


def run(main: Callable[[], None]) -> None:
    """Run *main*; exit with 2 if a program is missing, or if a system did not do its work."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (WebhookdError, TimeoutError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
