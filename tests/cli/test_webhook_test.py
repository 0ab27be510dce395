"""`webhookd webhook test` sends the request that a worker sends, headers and signature included."""

import pytest
from standardwebhooks import Webhook

from tests.cli.test_commands import assert_refused, webhookd
from tests.support.daemon import (
    LOOPBACK,
    Daemon,
    answer_ok,
    headers_of,
    wait_until_ready,
)
from tests.support.engine import Engine, insert
from tests.support.postgres import Database
from tests.support.receivers import Receiver
from webhookd.core.model import Attempted, GivenBack, Outcome
from webhookd.transport.client import Transport
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.circuits import LocalCircuits

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def register(database: Database, receiver: Receiver, headers: str | None) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, secret, headers) VALUES (1, %s, %s, %s)",
        [receiver.url(), SECRET, headers],
    )


def attempt(worker: Engine, sender: Transport) -> Outcome:
    [claimed] = worker.take_all()
    runner = AttemptRunner(sender, LocalCircuits(), installation="wh_test")
    return runner.deliver(claimed)


@pytest.mark.parametrize(
    "headers",
    [
        None,
        '{"X-Team": "billing", "x-number": 1.10, "x-flag": true, "x-none": null}',
        '{"Content-Type": "text/plain", "user-agent": "shop/1"}',
    ],
    ids=["none", "added", "replaced"],
)
def test_a_test_request_has_the_headers_of_a_workers_request(
    database: Database, worker: Engine, sender: Transport, headers: str | None
) -> None:
    with Receiver(answer_ok) as receiver:
        register(database, receiver, headers)
        insert(database, 1)
        outcome = attempt(worker, sender)
        assert isinstance(outcome, Attempted) and outcome.answer.http_status == 200
        done = webhookd("webhook", "test", "1", *LOOPBACK, dsn=database.dsn)
        assert done.returncode == 0, done.stderr
    sent, tested = receiver.requests
    for request in (sent, tested):
        head, _, body = request.partition(b"\r\n\r\n")
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
        assert len(names) == len(set(names))
        Webhook(SECRET).verify(body, headers_of(request))
    own = ("webhook-id", "webhook-timestamp", "webhook-signature", "content-length")
    ours, theirs = headers_of(sent), headers_of(tested)
    assert list(ours) == list(theirs)
    assert {name: value for name, value in ours.items() if name not in own} == {
        name: value for name, value in theirs.items() if name not in own
    }


def test_forged_headers_are_sent_by_neither(
    database: Database, worker: Engine, sender: Transport
) -> None:
    forged = '{"webhook-id": "other", "Webhook-Signature": "v1,forged"}'
    with Receiver(answer_ok) as receiver:
        register(database, receiver, forged)
        insert(database, 1)
        outcome = attempt(worker, sender)
        done = webhookd("webhook", "test", "1", *LOOPBACK, dsn=database.dsn)
        assert receiver.connections == 0
    assert isinstance(outcome, GivenBack) and outcome.reason is not None
    assert_refused(done, "nothing was sent to webhook 1", outcome.reason)


def test_while_a_fleet_runs_no_command_repeats_its_options(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn, workers=1):
        wait_until_ready(database, workers=1)
        added = webhookd("webhook", "add", receiver.url(), dsn=database.dsn)
        assert added.returncode == 0, added.stderr
        tested = webhookd("webhook", "test", "1", dsn=database.dsn)
        assert tested.returncode == 0, tested.stderr
