"""The recorder tells when results wait for the database, and what this worker lacked."""

import pytest

from tests.support.engine import (
    STANDARD,
    Engine,
    answered,
    given_back,
    insert,
    register,
    short_of_memory,
)
from tests.support.postgres import Database
from tests.support.scrape import Scrape
from tests.support.waiting import eventually
from webhookd.core.answer import ShortageKind
from webhookd.core.model import GivenBack, Result
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


def test_shortages_are_counted_and_said_once_a_minute_for_each_kind(
    database: Database, worker: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    register(database, 1)
    insert(database, 1, 5)
    lookup = GivenBack("too many DNS lookups run", ShortageKind.LOOKUP)
    claimed = worker.take_all()
    outcomes = [short_of_memory(), short_of_memory(), lookup, lookup, given_back()]
    metrics, results = Metrics("test", max_webhooks=10), ResultQueue()
    with session.open_pool(
        database.dsn, application_name="test/record", size=1, timeout_s=20.0
    ) as pool:
        recorder = Recorder(
            pool,
            ResultWriter(worker_id=worker.worker_id, defaults=STANDARD),
            results,
            circuits=LocalCircuits(),
            metrics=metrics,
            wakeup=WakeupPipe(),
        )
        for delivery, outcome in zip(claimed, outcomes, strict=True):
            results.put(Result(delivery, outcome))
        recorder.start()
        assert recorder.stop(timeout_s=20.0)
    scrape = Scrape(metrics)
    assert scrape.value("webhookd_given_back_total") == 5
    assert [scrape.value("webhookd_shortages_total", kind=kind) for kind in ShortageKind] == [
        *(2, 0, 2, 0, 0)
    ]
    said = [
        vars(record)["fields"]["kind"]
        for record in caplog.records
        if record.message == "deliveries given back for want of something"
    ]
    assert sorted(said) == ["lookup", "memory"]
