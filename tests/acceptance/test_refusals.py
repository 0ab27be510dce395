"""What a deploy or a wrong secret at the receiver costs, with the real program: a while, and no
delivery.
"""

from collections.abc import Callable

from tests.support.daemon import (
    Daemon,
    arrivals,
    headers_of,
    insert,
    register,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver

REFUSALS = [
    b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
]
WEBHOOKS = 3  # one delivery each


def refusing_at_first() -> Callable[[Peer], None]:
    """Return a behaviour that answers a delivery with each of REFUSALS once, then with 200."""
    left: dict[str, list[bytes]] = {}

    def behave(peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            answers = left.setdefault(headers_of(request)["webhook-id"], list(REFUSALS))
            peer.send(answers.pop(0) if answers else OK)

    return behave


def test_a_receiver_that_answers_401_403_and_404_once_each_gets_every_delivery_in_the_end(
    database: Database,
) -> None:
    with (
        Receiver(refusing_at_first()) as receiver,
        Daemon(database.dsn, "--retry-base", "0.1", "--log-level", "info") as daemon,
    ):
        register(database, receiver, count=WEBHOOKS)
        wait_until_ready(database)
        insert(database, WEBHOOKS, webhooks=WEBHOOKS)
        wait_until_delivered(database, WEBHOOKS)
        assert daemon.stop() == 0
        log = daemon.log()
    assert set(arrivals(receiver).values()) == {len(REFUSALS) + 1}
    logged = (
        "SELECT delivery_id, array_agg(event_type || ' ' || http_status ORDER BY log_id)"
        " FROM pggit.alert_delivery_log GROUP BY 1"
    )
    steps = ["retrying 401", "retrying 403", "retrying 404", "delivered 200"]
    assert [events for _, events in database.execute(logged)] == [steps] * WEBHOOKS
    # Three failures in a row are too few to open a circuit, and nobody was disabled.
    lanes = (
        "SELECT h.circuit_state, h.consecutive_failures, h.health_status, w.enabled, count(*)::int"
        " FROM pggit.webhook_health_metrics h JOIN pggit.webhooks w USING (webhook_id)"
        " GROUP BY 1, 2, 3, 4"
    )
    assert database.execute(lanes) == [("closed", 0, "healthy", True, WEBHOOKS)]
    assert "circuit opened" not in log and "webhook disabled" not in log
