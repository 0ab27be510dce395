"""matplotlib, which is not webhookd's: bench/requirements.txt names it, and `make bench-growth` and
`make soak` install it.
"""

from typing import Any

from webhookd.errors import UnusableError


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files; ask for it before anything is measured."""
    try:
        import matplotlib
    except ImportError as error:
        raise UnusableError(
            "no matplotlib is installed: pip install -r bench/requirements.txt"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
