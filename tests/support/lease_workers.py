"""The workers of a random schedule."""

from dataclasses import dataclass, field, replace
from uuid import uuid4

from tests.support.engine import ROOMY, Engine, allow_all
from tests.support.expected import MAX_RETRIES
from webhookd.core.model import Delivery, Result
from webhookd.postgres.claim import Claimer

WEBHOOKS = (1, 2)
CAP = 2
DEFAULTS = ROOMY._replace(max_in_flight=CAP, circuit_threshold=1_000_000, max_retries=MAX_RETRIES)


@dataclass(slots=True, eq=False)
class Worker:
    """A name, the process that has it just now, and what that one remembers."""

    engine: Engine
    hands: list[Delivery] = field(default_factory=list)
    results: list[tuple[Result, str]] = field(default_factory=list)
    lost: list[Result] = field(default_factory=list)

    def anew(self) -> None:
        """Another process with the same name: nothing is left of the last one but its leases."""
        incarnation = uuid4()
        claimer = Claimer(
            worker_id=self.engine.worker_id,
            incarnation=incarnation,
            defaults=DEFAULTS,
            judge=allow_all,
        )
        claimer._statements = self.engine.claimer._statements  # faults are planted in them
        self.engine = replace(self.engine, incarnation=incarnation, claimer=claimer)
        self.hands, self.results, self.lost = [], [], []
