"""The workers' metrics without a command line: who is asked, what is merged, what failed."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.support.doctor import add_worker
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver, answering, refusing
from webhookd.admin import database as admin_database
from webhookd.admin import scrape
from webhookd.admin.database import Connection
from webhookd.admin.scrape import Endpoint, FleetMetrics
from webhookd.config.options import Config
from webhookd.errors import UnusableError, WebhookdError


def exposition(claims: int) -> bytes:
    text = f"# TYPE webhookd_claims_total counter\nwebhookd_claims_total {claims}\n".encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with admin_database.connect(Config(dsn=database.dsn)) as connection:
        yield connection


def errors(fleet: FleetMetrics) -> list[str | None]:
    return [one.error for one in fleet.scrapes]


def test_workers_that_reported_lately_are_asked_where_they_can_be_asked(
    database: Database, connection: Connection
) -> None:
    here = socket.gethostname()
    add_worker(database, "worker-1", here, address="127.0.0.1:8000", seen_s=-1)
    add_worker(database, "worker-2", "far.example", address="far.example:8000", seen_s=-1)
    add_worker(database, "worker-3", "far.example", address="127.0.0.1:8000", seen_s=-1)
    add_worker(database, "worker-4", here, address="127.0.0.1:8003", seen_s=-120)
    add_worker(database, "worker-5", here, seen_s=-1)
    near, far, unreachable = scrape.endpoints(connection)
    assert near == Endpoint("http://127.0.0.1:8000/metrics")
    assert far == Endpoint("http://far.example:8000/metrics")
    assert unreachable.url == near.url
    assert unreachable.error is not None and "worker-3 on far.example" in unreachable.error
    # A silent worker stays a target: Prometheus must see that it is down.
    listed = [group["labels"] for group in scrape.targets(connection)]
    assert all(f"worker-{n}" in str(listed) for n in (2, 4)) and "worker-5" not in str(listed)


def test_without_a_worker_there_is_nothing_to_ask(connection: Connection) -> None:
    with pytest.raises(WebhookdError, match="no worker has reported"):
        scrape.endpoints(connection)
    assert scrape.targets(connection) == []


def test_the_answers_are_merged_and_each_failure_is_named() -> None:
    def slow(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        peer.drip(b"# " * 50000, interval_s=0.2)

    missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    with (
        Receiver(answering(exposition(3))) as one,
        Receiver(answering(exposition(4))) as two,
        Receiver(slow) as dripping,
        Receiver(answering(OK)) as other,
        Receiver(answering(missing)) as wrong,
        Receiver(answering(empty)) as silent,
        refusing() as port,
    ):
        urls = [one.url(""), two.url(""), dripping.url(), other.url(), wrong.url(), silent.url()]
        asked = [Endpoint(url) for url in (*urls, f"http://127.0.0.1:{port}/")]
        fleet = scrape.scrape([*asked, Endpoint(one.url(""), "not from here")], timeout_s=2.0)
    assert [found.url for found in fleet.scrapes] == [*(one.url for one in asked), asked[0].url]
    *told, refused, unasked = errors(fleet)
    assert told == [
        None,
        None,
        "no answer within 2 s",
        "this is not Prometheus' text format",
        "HTTP 404",
        "the answer holds no metrics",
    ]
    assert refused is not None and "refused" in refused
    assert unasked == "not from here"
    assert "webhookd_claims_total 7.0" in fleet.as_text()
    report = fleet.as_json()
    assert [one["error"] for one in report["workers"]] == errors(fleet)
    assert [(one["name"], one["value"]) for one in report["metrics"]] == [
        ("webhookd_claims_total", 7)
    ]
    assert report["at"].endswith("Z")


def test_metrics_are_posted_as_json_and_a_refusal_is_one_line() -> None:
    refusal = b"HTTP/1.1 307 Elsewhere\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n"
    with (
        Receiver(answering(exposition(3))) as worker,
        Receiver(answering(OK)) as ingest,
        Receiver(answering(refusal)) as moved,
    ):
        fleet = scrape.scrape([Endpoint(worker.url("/metrics"))], timeout_s=30.0)
        assert scrape.post(ingest.url("/in"), fleet) == "HTTP 200"
        with pytest.raises(WebhookdError, match="--post: HTTP 307"):
            scrape.post(moved.url(), fleet)
        assert len(moved.requests) == 1, "redirects are not followed"
        head, _, body = ingest.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /in HTTP/1.1\r\n")
    assert json.loads(body) == fleet.as_json()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.test:1", "http://a.test:1/metrics"),
        ("https://a.test/", "https://a.test/metrics"),
        ("http://a.test/b?c=d", "http://a.test/b?c=d"),
        ("ftp://a.test/", None),
        ("https://user:hunter2@a.test/", None),
        ("http://", None),
        ("a.test", None),
    ],
)
def test_a_url_is_http_or_https_without_credentials(url: str, expected: str | None) -> None:
    if expected is not None:
        assert scrape.checked_url("--url", url, default_path="/metrics") == expected
        return
    with pytest.raises(UnusableError) as refusal:
        scrape.checked_url("--url", url)
    assert str(refusal.value).startswith("--url must be") and "hunter2" not in str(refusal.value)
