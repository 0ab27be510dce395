"""What a queue row should be after each step of the claim, lease, fence and record protocol."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.engine import Engine, answered, given_back
from webhookd.core.model import Delivery, Outcome

MAX_RETRIES = 3  # of the workers in these tests; rows leave it to them
OUTCOMES: dict[str, Callable[[], Outcome]] = {
    "delivered": lambda: answered(200),
    "retry": lambda: answered(500),
    "throttled": lambda: answered(429),
    "given back": given_back,
}


@dataclass(slots=True)
class Row:
    """What a queue row should be. *holder*: the only one whose result it takes."""

    webhook_id: int
    status: str = "pending"
    retries: int = 0
    losses: int = 0
    attempts: int = 0
    expired: bool = False
    torn: bool = (
        False  # its status was changed behind every trigger's back, the token left in place
    )
    holder: tuple[Engine, Delivery] | None = None

    @property
    def waiting(self) -> bool:
        return self.status in ("pending", "retrying")

    def end(self, outcome: str) -> None:
        self.holder, self.expired = None, False
        if outcome == "given back":
            self.status = "retrying" if self.attempts else "pending"
            return
        self.attempts += 1
        if outcome == "retry" and self.retries < MAX_RETRIES:
            self.retries += 1
            self.status = "retrying"
        else:
            self.status = {"delivered": "delivered", "throttled": "retrying"}.get(outcome, "failed")

    def lose(self) -> None:
        self.holder, self.expired = None, False
        self.losses += 1
        self.status = "failed" if self.losses >= 6 else "retrying" if self.attempts else "pending"
