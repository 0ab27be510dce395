"""webhookd whose threads have their names in the kernel too, for /proc, `top -H` and perf. Python
3.14 and newer do this without help.

python -m bench.threads --dsn ...
"""

import threading
from pathlib import Path

from webhookd.cli.main import main

_run = threading.Thread.run


def _run_named(self: threading.Thread) -> None:
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(
        self.name.removeprefix("webhookd-")[:15]
    )
    _run(self)


if __name__ == "__main__":
    threading.Thread.run = _run_named  # type: ignore[method-assign]
    main()
