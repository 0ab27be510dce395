"""Each cause for which a lane may not move: made, and ended."""

from tests.support.engine import Engine, answered, insert, let_pass, register
from tests.support.postgres import Database
from webhookd.core.model import Delivery


def block(database: Database, worker: Engine, cause: str) -> list[Delivery]:
    """Have the lane of webhook 1 blocked by *cause*, without a waiting row; return what is in
    flight.
    """
    if cause == "unregistered":
        return []
    limits: dict[str, dict[str, float]] = {
        "rate": {"rate_limit_per_second": 0.01, "rate_limit_burst": 1},
        "in_flight": {"max_in_flight": 1},
    }
    register(database, 1, **limits.get(cause, {}))
    insert(database, 1, 5 if cause == "circuit" else 1)
    claimed = worker.take_all()
    if cause == "paused":
        worker.finish(claimed, answered(200))
        database.execute("UPDATE pggit.webhooks SET enabled = false WHERE webhook_id = 1")
    elif cause == "circuit":
        worker.finish(claimed, answered(404))
    elif cause == "hold":
        worker.finish(claimed, answered(429, retry_after="1000"))
        database.execute("DELETE FROM pggit.alert_delivery_queue")
    elif cause == "rate":
        worker.finish(claimed, answered(200))
    return claimed


def unblock(database: Database, worker: Engine, cause: str, in_flight: list[Delivery]) -> None:
    if cause == "unregistered":
        register(database, 1)
    elif cause == "paused":
        database.execute("UPDATE pggit.webhooks SET enabled = true WHERE webhook_id = 1")
    elif cause == "in_flight":
        worker.finish(in_flight, answered(200))
    else:
        let_pass(database, {"circuit": 61.0, "hold": 1001.0, "rate": 101.0}[cause])
