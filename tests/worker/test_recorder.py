"""The recorder tells when results wait for the database."""

import pytest

from tests.support.engine import STANDARD, Engine, answered, insert, register
from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.core.model import Result
from webhookd.metrics.counters import Metrics
from webhookd.postgres import session
from webhookd.postgres.record import ResultWriter
from webhookd.worker import recorder as recorder_module
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.recorder import Recorder
from webhookd.worker.results import ResultQueue
from webhookd.worker.wakeup import WakeupPipe


def test_a_recorder_without_a_database_is_not_caught_up(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of the result that waits may have expired meanwhile: released before it is
    recorded, the delivery would be sent again.
    """
    monkeypatch.setattr(recorder_module, "STUCK_S", 0.1)
    register(database, 1)
    insert(database, 1)
    [delivery] = worker.take_all()
    results = ResultQueue()
    with session.open_pool(
        "host=127.0.0.1 port=1", application_name="test/away", size=1, timeout_s=0.1
    ) as away:
        recorder = Recorder(
            away,
            ResultWriter(worker_id="test", defaults=STANDARD),
            results,
            circuits=LocalCircuits(),
            metrics=Metrics("test", max_webhooks=10),
            wakeup=WakeupPipe(),
        )
        recorder.start()
        assert recorder.is_caught_up()
        results.put(Result(delivery, answered(200)), last=True)
        eventually(lambda: not recorder.is_caught_up(), what="it is known that a result waits")
        assert not recorder.stop(timeout_s=0.1)
