"""webhookd with a worker that falls ill: `python sick_webhookd.py ILLNESS PROBABILITY TIMES
WEBHOOKD'S OPTIONS`.

boot        worker 1 dies before it has booted
dispatcher  hangs, outside the database
exchange    raises after the request was answered
sender      raises outside an exchange, which ends its thread
recorder    raises, which ends its thread

Each time that it can happen it happens with PROBABILITY, TIMES altogether. Like failing_webhookd.py
this wraps webhookd's own functions before the workers are forked.
"""

import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from webhookd.core import restart
from webhookd.core.backoff import GrowingPause
from webhookd.worker import process
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.recorder import Recorder
from webhookd.worker.senders import SenderPool


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    threading.Event().wait()


def fail() -> None:
    raise RuntimeError("injected")


ILLNESSES: dict[str, tuple[Any, str, Callable[[], None]]] = {
    "boot": (process, "wait_for_database", die),
    "dispatcher": (SenderPool, "submit", hang),
    "exchange": (AttemptRunner, "deliver", fail),
    "sender": (SenderPool, "_send", fail),
    "recorder": (Recorder, "_record", fail),
}


def infect(illness: str, probability: float, times: int) -> None:
    """Let the fleet fall ill *times*, with *probability* each time that it can."""
    owner, name, break_out = ILLNESSES[illness]
    original: Callable[..., Any] = getattr(owner, name)
    left = multiprocessing.Value("i", times)
    chance = random.SystemRandom()  # forked workers would share the state of any other

    def due(args: tuple[Any, ...]) -> bool:
        # An empty claim does not count.
        able = args[1].number == 1 if illness == "boot" else bool(args[-1])
        if not able or chance.random() >= probability:
            return False
        with left.get_lock():
            left.value -= 1
            return bool(left.value >= 0)

    def wrapped(*args: Any) -> Any:
        result = original(*args) if illness == "exchange" else None
        if due(args):
            print(f"fell ill: {illness} in process {os.getpid()}", file=sys.stderr, flush=True)
            break_out()
        return result if illness == "exchange" else original(*args)

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    illness, probability, times = sys.argv[1:4]
    del sys.argv[1:4]
    infect(illness, float(probability), int(times))
    if illness != "boot":
        # Otherwise a storm that ends a worker a second would mostly wait for new workers.
        restart.PAUSE = GrowingPause(first_s=0.5, max_s=0.5)
    from webhookd.cli.main import main

    main()
