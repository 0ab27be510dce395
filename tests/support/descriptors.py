"""A process that holds very many descriptors, as a worker with thousands of receivers does."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

SELECT_TAKES = 1024


@contextmanager
def crowded(spare: int = 200) -> Iterator[None]:
    """Have every descriptor that is opened meanwhile be one that select refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SELECT_TAKES + spare
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # What earlier tests left to the garbage collector would free low descriptors in the middle.
    gc.collect()
    gc.disable()
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] < SELECT_TAKES:
            held.append(os.dup(held[0]))
        yield
    finally:
        gc.enable()
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowded_out() -> Iterator[None]:
    """Leave this process without a single free descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    # The limit is one above the highest number that may be opened; all lower ones are in use.
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
