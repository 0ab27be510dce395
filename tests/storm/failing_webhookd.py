"""webhookd with a failpoint: `python failing_webhookd.py STEP PROBABILITY TIMES WEBHOOKD'S
OPTIONS`.

After the step a worker is killed by SIGKILL with that probability. With `..._answer_lost` its
database connection is closed instead, just after the COMMIT of that step, so the worker never gets
the answer. After TIMES failures nothing fails any more. This program wraps webhookd's own functions
before the workers are forked; webhookd itself has no failpoints.
"""

import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from webhookd.core import restart
from webhookd.core.backoff import GrowingPause
from webhookd.postgres.claim import Claimer
from webhookd.postgres.record import ResultWriter
from webhookd.worker.attempt import AttemptRunner

# Otherwise a storm that kills a worker a second would mostly wait for new workers.
restart.PAUSE = GrowingPause(first_s=0.5, max_s=0.5)

STEPS: dict[str, tuple[type, str]] = {
    "claim_uncommitted": (Claimer, "_take"),
    "claimed": (Claimer, "claim"),
    "claim_answer_lost": (Claimer, "_take"),
    "sent": (AttemptRunner, "deliver"),
    "record_uncommitted": (ResultWriter, "_record_in"),
    "recorded": (ResultWriter, "record"),
    "record_answer_lost": (ResultWriter, "_record_in"),
}


def fail_after(step: str, probability: float, times: int) -> None:
    """Let the fleet fail *times* after *step*, with *probability* after each one."""
    owner, name = STEPS[step]
    original: Callable[..., Any] = getattr(owner, name)
    left = multiprocessing.Value("i", times)
    chance = random.SystemRandom()  # forked workers would share the state of any other

    failing = threading.Lock()  # the first thread would kill a second one before its message

    def due() -> bool:
        if chance.random() >= probability:
            return False
        with left.get_lock():  # released before the worker dies
            left.value -= 1
            return bool(left.value >= 0)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        with failing:
            if _happened(step, result) and due():
                print(f"failpoint {step}", file=sys.stderr, flush=True)
                if step.endswith("_answer_lost"):
                    cursor: psycopg.Cursor[Any] = args[0]
                    _lose_answer(cursor.connection)
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


def _lose_answer(connection: psycopg.Connection[Any]) -> None:
    """Break *connection* right after its next COMMIT."""
    execute = connection.execute

    def breaks_after_commit(query: Any, *args: Any, **kwargs: Any) -> Any:
        cursor = execute(query, *args, **kwargs)
        if query == "COMMIT":
            connection.close()
            raise psycopg.OperationalError("the answer to COMMIT was lost")
        return cursor

    connection.execute = breaks_after_commit  # type: ignore[method-assign]


def _happened(step: str, result: Any) -> bool:
    """Return whether the step did anything: an empty claim does not count."""
    match step:
        case "claimed":
            return bool(result.deliveries)
        case "claim_uncommitted" | "claim_answer_lost":
            return bool(result[0])
    return True


if __name__ == "__main__":
    step, probability, times = sys.argv[1:4]
    del sys.argv[1:4]
    fail_after(step, float(probability), int(times))
    from webhookd.cli.main import main

    main()
