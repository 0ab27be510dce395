"""webhookd that resolves names here: `python stub_dns_webhookd.py HEALED WEBHOOKD'S OPTIONS`.

A name under test begins with its behaviour: silent (no answer at all), slow (10 s), unknown,
failing, silly (no valid name), flapping (every other lookup fails). Other names are 127.0.0.1 at
once. As soon as the file HEALED exists, all names are.
"""

import itertools
import re
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Found = Sequence[tuple[int, int, int, str, tuple[object, ...]]]

_real = socket.getaddrinfo
_lookups = itertools.count()


def resolve(host: str, port: int | str | None, *rest: Any, **options: Any) -> Found:
    """Stand in for `socket.getaddrinfo`."""
    if not str(host).endswith(".test"):
        return _real(host, port, *rest, **options)
    if not HEALED.exists():
        match re.split("[-.]", host)[0]:
            case "silent":
                while not HEALED.exists():
                    time.sleep(0.1)
            case "slow":
                time.sleep(10)
            case "unknown":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            case "failing":
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            case "silly":
                raise UnicodeError("label too long")
            case "flapping" if next(_lookups) % 2 == 0:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


if __name__ == "__main__":
    HEALED = Path(sys.argv.pop(1))
    # Before the transport is imported: it uses this function as a default.
    socket.getaddrinfo = resolve  # type: ignore[assignment]
    from webhookd.cli.main import main

    main()
