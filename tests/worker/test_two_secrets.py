"""Two secrets sign while one replaces the other, and the former leaves the workers' memory."""

import gc
import hashlib
import json
import sys
import threading
from collections.abc import Iterator

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.daemon import (
    Daemon,
    answer_ok,
    headers_of,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.engine import Engine, answered, insert, lane, register
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver
from tests.support.waiting import eventually
from webhookd import cache
from webhookd.admin import database as admin_database
from webhookd.admin import registry, rotation
from webhookd.config.options import Config
from webhookd.core.signing import parse_secret
from webhookd.transport import request
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.circuits import LocalCircuits

UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture
def connection(database: Database) -> Iterator[admin_database.Connection]:
    with admin_database.connect(Config(dsn=database.dsn)) as connection:
        yield connection


class Verifying:
    """A receiver that answers 401 to what its *secret*, which may change, has not signed."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __call__(self, peer: Peer) -> None:
        while (asked := peer.read_request()) is not None:
            try:
                Webhook(self.secret).verify(asked.partition(b"\r\n\r\n")[2], headers_of(asked))
                peer.send(OK)
            except WebhookVerificationError:
                peer.send(UNAUTHORIZED)


def keep_inserting(database: Database, *webhook_ids: int, stop: threading.Event) -> int:
    """Insert a row for each webhook every few milliseconds until *stop*; return how many."""
    count = 0
    with database.connect() as producer:
        while not stop.wait(0.005):
            for webhook_id in webhook_ids:
                producer.execute(
                    "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
                    " VALUES (%s, '{}')",
                    [webhook_id],
                )
                count += 1
    return count


def test_a_rotation_under_load_fails_nothing_whichever_secret_the_receiver_has(
    database: Database, connection: admin_database.Connection
) -> None:
    first, second = registry.new_secret(), registry.new_secret()
    stop = threading.Event()
    inserted: list[int] = []
    changing = Verifying(first)
    with Receiver(Verifying(first)) as late, Receiver(changing) as prompt:
        for webhook_id, receiver in ((1, late), (2, prompt)):
            register(database, webhook_id, secret=first, rate_limit_per_second=0.0)
            database.execute(
                "UPDATE pggit.webhooks SET url = %s WHERE webhook_id = %s",
                [receiver.url(), webhook_id],
            )
        producer = threading.Thread(
            target=lambda: inserted.append(keep_inserting(database, 1, 2, stop=stop))
        )
        with Daemon(database.dsn):
            wait_until_ready(database)
            producer.start()
            for receiver in (late, prompt):
                assert receiver.wait_for_requests(50)
            for webhook_id in (1, 2):
                rotation.rotate(connection, webhook_id, secret=second)
            eventually(
                lambda: all(signatures(receiver)[-1] == 2 for receiver in (late, prompt)),
                what="both secrets to sign",
            )
            changing.secret = second
            for receiver in (late, prompt):
                assert receiver.wait_for_requests(len(receiver.requests) + 100)
            stop.set()
            producer.join()
            wait_until_delivered(database, inserted[0])
    assert database.execute(
        "SELECT count(*) FROM pggit.alert_delivery_log WHERE event_type <> 'delivered'"
    ) == [(0,)]
    assert {lane(database, webhook_id)["circuit_state"] for webhook_id in (1, 2)} == {"closed"}


def signatures(receiver: Receiver) -> list[int]:
    """Return how many signatures each request carried."""
    return [len(headers_of(one)["webhook-signature"].split(" ")) for one in list(receiver.requests)]


def test_the_old_secret_ends_by_itself_at_its_instant_and_is_erased(
    database: Database, connection: admin_database.Connection
) -> None:
    first, second = registry.new_secret(), registry.new_secret()
    stop = threading.Event()
    producer = threading.Thread(target=lambda: keep_inserting(database, 1, stop=stop))
    with Receiver(answer_ok) as receiver:
        register(database, 1, secret=first, rate_limit_per_second=0.0)
        database.execute("UPDATE pggit.webhooks SET url = %s", [receiver.url()])
        with Daemon(database.dsn):
            wait_until_ready(database)
            producer.start()
            assert receiver.wait_for_requests(1)
            rotation.rotate(connection, 1, secret=second, overlap_s=6.0)
            [(until_at,)] = database.execute(
                "SELECT extract(epoch FROM old_secret_until)::float8 FROM pggit.webhooks"
            )
            eventually(lambda: 2 in signatures(receiver), what="both secrets to sign")
            # Not the count of signatures: a worker may see the rotation a moment after others.
            eventually(
                lambda: int(headers_of(receiver.requests[-1])["webhook-timestamp"]) >= until_at,
                what="a request after the old secret's end",
            )
            stop.set()
            producer.join()
            database.execute(
                "UPDATE pggit.chores SET last_run_at = '-infinity' WHERE chore = 'old_secrets'"
            )
            erased = "SELECT count(*) FROM pggit.webhooks WHERE old_secret IS NULL"
            eventually(lambda: database.execute(erased) == [(1,)], what="it to be erased")
        sent = [
            (int(headers_of(one)["webhook-timestamp"]), count)
            for one, count in zip(receiver.requests, signatures(receiver), strict=False)
        ]
    # A moment passes before all workers have seen the rotation, but none before they see its end.
    assert all(at < until_at for at, count in sent if count == 2)
    assert all(count == 1 for at, count in sent if at >= until_at)
    assert any(at >= until_at for at, _ in sent)


def test_a_secret_that_has_ended_is_nowhere_in_the_workers_memory(
    database: Database, worker: Engine
) -> None:
    """The test itself remembers the secret by its hash only."""
    with Receiver(answer_ok) as receiver:
        transport = Transport(Egress(True, ("127.0.0.0/8",)))
        runner = AttemptRunner(transport, LocalCircuits(), installation="wh_test")

        def deliver() -> None:
            insert(database, 1)
            deliveries = worker.take()
            for delivery in deliveries:
                runner.deliver(delivery)
            assert len(deliveries) == 1
            worker.finish(deliveries, answered(200))

        register(database, 1)
        database.execute(
            'UPDATE pggit.webhooks SET url = %s, headers = \'{"x-team": "a"}\','
            " secret = 'whsec_' || encode(sha256(gen_random_uuid()::text::bytea), 'base64')",
            [receiver.url()],
        )
        deliver()
        with admin_database.connect(Config(dsn=database.dsn)) as connection:
            rotation.rotate(connection, 1)
        deliver()
        [(text_hash, key_hash)] = database.execute(
            "SELECT encode(sha256(old_secret::bytea), 'hex'),"
            " encode(sha256(decode(substr(old_secret, 7), 'base64')), 'hex') FROM pggit.webhooks"
        )
        hashes = {bytes.fromhex(text_hash), bytes.fromhex(key_hash)}
        database.execute("UPDATE pggit.webhooks SET old_secret_until = now()")
        deliver()
        receiver.requests.clear()
    assert not list(found_in_memory(hashes))


def test_the_search_finds_a_secret_that_something_holds() -> None:
    text = registry.new_secret()
    holder = {"deep": [(text, parse_secret(text))]}
    hashes = {hashlib.sha256(one).digest() for one in (text.encode(), holder["deep"][0][1])}
    assert len(list(found_in_memory(hashes))) == 2


def found_in_memory(hashes: set[bytes]) -> Iterator[str | bytes]:
    """Yield the texts and bytes in this process's containers that have one of these SHA-256."""
    gc.collect()
    seen: set[int] = set()
    todo = gc.get_objects()
    while todo:
        for one in gc.get_referents(todo.pop()):
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, str | bytes):
                data = one.encode("utf-8", "surrogatepass") if isinstance(one, str) else one
                if len(data) < 200 and hashlib.sha256(data).digest() in hashes:
                    yield one
            elif not gc.is_tracked(one):
                todo.append(one)


@pytest.mark.parametrize("ages", [False, True])
def test_ten_thousand_large_webhooks_keep_the_caches_below_their_budget(ages: bool) -> None:
    egress = Egress(False)
    transport = Transport(egress)
    for webhook_id in range(10_000):
        url = f"https://{webhook_id}.example/" + "u" * 8000
        headers = json.dumps({"x-large": f"{webhook_id}" + "h" * 16_000})
        transport._route(url)
        request.header_lines(headers)
        if ages and webhook_id % 1000 == 0:
            cache.age_all()
    caches: tuple[cache.ByteCache[object, object], ...] = (
        transport._routes,  # type: ignore[assignment]
        request._made_lines,
    )
    for one in caches:
        assert 2 << 20 < one.size() <= 8 << 20
        held = [*one._young.items(), *one._old.items()]
        assert sum(weight(key) + weight(value) for key, (value, _) in held) <= one.size()


def weight(value: object) -> int:
    """Return the bytes of a text, or of a tuple and all that it holds."""
    parts = value if isinstance(value, tuple) else ()
    return sys.getsizeof(value) + sum(map(weight, parts))
