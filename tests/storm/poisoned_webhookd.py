"""webhookd with poison in its queue: `python poisoned_webhookd.py WEBHOOK_ID WEBHOOKD'S OPTIONS`.

A worker that is about to send a delivery of that webhook is killed by SIGKILL, as if its body had
triggered a bug of the interpreter. Like failing_webhookd.py, this wraps webhookd's own function
before the workers are forked.
"""

import os
import signal
import sys

from webhookd.core import restart
from webhookd.core.backoff import GrowingPause
from webhookd.core.model import Delivery, Outcome
from webhookd.worker.attempt import AttemptRunner

restart.PAUSE = GrowingPause(first_s=0.5, max_s=0.5)


def poison(webhook_id: int) -> None:
    """Let each delivery of webhook *webhook_id* kill the worker that sends it."""
    deliver = AttemptRunner.deliver

    def fatal(self: AttemptRunner, delivery: Delivery) -> Outcome:
        if delivery.webhook_id == webhook_id:
            print(f"poisoned by {delivery.delivery_id}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return deliver(self, delivery)

    AttemptRunner.deliver = fatal  # type: ignore[method-assign]


if __name__ == "__main__":
    poison(int(sys.argv.pop(1)))
    from webhookd.cli.main import main

    main()
