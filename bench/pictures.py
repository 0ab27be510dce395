"""matplotlib, which webhookd itself does not need: bench/requirements.txt names it, and `make
bench-growth`, `make bench-bulkheads` and `make soak` install it.
"""

from typing import Any

from webhookd.errors import UnusableError


def pyplot() -> Any:
    """Return matplotlib's pyplot, set to draw into files. Raise `UnusableError` if it is missing:
    call this before measuring.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UnusableError(
            "no matplotlib is installed: pip install -r bench/requirements.txt"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
