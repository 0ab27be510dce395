"""The decisions of webhookd.core about the end of a claim, for lease_model.py."""

from collections.abc import Sequence
from datetime import UTC, datetime
from types import ModuleType

from tests.property.lease_state import Claim, End, Fleet
from webhookd.core.answer import Answer, AnswerKind
from webhookd.core.breaker import Breaker
from webhookd.core.bucket import Bucket
from webhookd.core.lane import Lane
from webhookd.core.lifecycle import Settlement
from webhookd.core.model import (
    Attempted,
    Delivery,
    GivenBack,
    Lost,
    Outcome,
    Result,
    WebhookSettings,
)


class Core:
    """The decisions, cached: there are few, and the model needs them a million times."""

    _NOW_AT = datetime(2026, 1, 1, tzinfo=UTC)

    def __init__(self, fleet: Fleet, settles: ModuleType, settles_lane: ModuleType) -> None:
        self._fleet = fleet
        self._settles = settles
        self._settles_lane = settles_lane
        self._settings = WebhookSettings(
            1,
            "",
            True,
            None,
            None,
            None,
            None,
            5.0,
            fleet.cap,
            0.0,
            1,
            10,
            1.0,
            2.0,
            1.0,
            1_000_000,
            1.0,
        )
        self._settlements: dict[tuple[End, int, int, int], Settlement] = {}
        self._quotas: dict[tuple[int, int], int] = {}
        self._in_flights: dict[tuple[int, tuple[Claim, ...]], int] = {}

    def settlement(self, claim: Claim) -> Settlement:
        """Return what becomes of the row: `lifecycle.settle`."""
        key = (claim.end, claim.retry_count, claim.attempts, claim.leases_lost)
        if key not in self._settlements:
            settlement = self._settles.settle(
                self._delivery(claim), _OUTCOMES[claim.end], now_at=self._NOW_AT, u=0.0
            )
            self._settlements[key] = settlement
        return self._settlements[key]

    def quota(self, in_flight: int, wish: int) -> int:
        """Return how many rows the lane gives: `lane.admit`."""
        if (in_flight, wish) not in self._quotas:
            admission = self._settles_lane.admit(
                self._lane(in_flight), self._settings, now=0.0, wish=wish
            )
            self._quotas[in_flight, wish] = admission.quota
        return self._quotas[in_flight, wish]

    def in_flight_after(self, in_flight: int, ended: Sequence[Claim]) -> int:
        """Return the lane's counter after these claims ended: `lane.settle_lane`."""
        key = (in_flight, tuple(ended))
        if key not in self._in_flights:
            settled = [
                (Result(self._delivery(claim), _OUTCOMES[claim.end]), self.settlement(claim))
                for claim in ended
            ]
            self._in_flights[key] = self._settles_lane.settle_lane(
                self._lane(in_flight), settled, now=0.0
            ).in_flight
        return self._in_flights[key]

    def _delivery(self, claim: Claim) -> Delivery:
        most = self._fleet.max_retries
        numbers = (claim.retry_count, most, claim.attempts, claim.leases_lost)
        return Delivery(
            claim.row, 1, claim.token, Breaker(), b"", *numbers, 0.0, self._settings, 0.0, 0.0
        )

    @staticmethod
    def _lane(in_flight: int) -> Lane:
        return Lane(1, Breaker(), Bucket(None, 0.0), in_flight, None, None, None, "unknown")


_OUTCOMES: dict[End, Outcome] = {
    End.DELIVERED: Attempted(Answer(AnswerKind.RESPONSE, 0.1, http_status=200), 0.0),
    End.RETRY: Attempted(Answer(AnswerKind.RESPONSE, 0.1, http_status=500), 0.0),
    End.RETURNED: GivenBack(),
    End.LOST: Lost(),
}
