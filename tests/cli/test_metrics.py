"""`webhookd metrics` on a real fleet: the sum of what its workers say, sent where it is wanted, and
what is missing is named.
"""

import gzip
import json
import ssl
import subprocess
import urllib.request

import pytest
import trustme

from tests.cli.test_commands import assert_refused, webhookd
from tests.support.daemon import (
    Daemon,
    answer_ok,
    insert,
    register,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver, answering
from tests.support.waiting import eventually

DELIVERED = 40
PATIENT = ("--timeout", "30")  # the machine may be slow


def lines(text: str) -> dict[str, float]:
    """Read an exposition: what stands before the last space is the series."""
    return {
        series: float(value)
        for series, _, value in (
            line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")
        )
    }


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return lines(answer.read().decode())


def attempts(series: dict[str, float]) -> float:
    return sum(
        value for name, value in series.items() if name.startswith("webhook_deliveries_total")
    )


def test_a_fleets_metrics_are_merged_sent_and_found(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver, count=4)
        wait_until_ready(database)
        insert(database, DELIVERED, webhooks=4)
        wait_until_delivered(database, DELIVERED)
        ports = daemon.metrics_ports()
        # A result is counted a moment after it was written.
        eventually(lambda: sum(attempts(scraped(port)) for port in ports) == DELIVERED)
        assert_merged(
            webhookd("metrics", *PATIENT, dsn=database.dsn), [scraped(port) for port in ports]
        )
        assert_sent(database)
        assert_found(database, ports)
        assert_others_are_printed_where_one_is_missing(database)


def assert_merged(done: "subprocess.CompletedProcess[str]", each: list[dict[str, float]]) -> None:
    assert (done.returncode, done.stderr) == (0, "")
    fleet = lines(done.stdout)
    for name in (
        "webhook_deliveries_total",
        "webhook_delivery_duration_seconds_count",
        "webhookd_recorded_results_total",
    ):
        chosen = {series for one in each for series in one if series.startswith(name)}
        assert chosen
        assert {series: fleet[series] for series in chosen} == {
            series: sum(one.get(series, 0.0) for one in each) for series in chosen
        }
    assert attempts(fleet) == DELIVERED
    workers = {f'worker_health_status{{worker_id="worker-{i}"}}' for i in (1, 2, 3)}
    assert {series for series in fleet if series.startswith("worker_health")} == workers


def assert_sent(database: Database) -> None:
    with Receiver(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as ingest:
        sent = webhookd(
            "metrics",
            *PATIENT,
            "--json",
            "--post",
            ingest.url("/ingest?source=webhookd"),
            dsn=database.dsn,
        )
        assert sent.returncode == 0, sent.stderr
        head, _, body = ingest.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /ingest?source=webhookd HTTP/1.1\r\n")
    assert b"content-type: application/json" in head.lower()
    report = json.loads(body)
    assert report == json.loads(sent.stdout)
    assert [worker["error"] for worker in report["workers"]] == [None] * 3
    assert (
        sum(one["value"] for one in report["metrics"] if one["name"] == "webhook_deliveries_total")
        == DELIVERED
    )
    assert f"{len(report['metrics'])} series sent: HTTP 204" in sent.stderr


def assert_found(database: Database, ports: list[int]) -> None:
    listed = json.loads(webhookd("metrics", "--targets", dsn=database.dsn).stdout)
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/targets", timeout=20) as answer:
        assert listed == json.load(answer)
    assert {group["targets"][0] for group in listed} == {f"127.0.0.1:{port}" for port in ports}
    assert listed[0]["labels"] == {"worker_id": "worker-1", "service": "webhook-delivery"}


def assert_others_are_printed_where_one_is_missing(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, metrics_address) "
        "VALUES"
        " (gen_random_uuid(), 'worker-9', (SELECT max(host) FROM pggit.workers), 1, '0', "
        "'127.0.0.1:1'),"
        " (gen_random_uuid(), 'far/worker-1', 'far.example', 1, '0', '127.0.0.1:8000')"
    )
    done = webhookd("metrics", *PATIENT, dsn=database.dsn)
    assert done.returncode == 1
    far, dead = sorted(done.stderr.splitlines(), key=lambda line: "127.0.0.1:1/" in line)
    assert (
        "127.0.0.1:8000" in far and "far/worker-1 on far.example" in far and "--metrics-host" in far
    )
    assert "http://127.0.0.1:1/metrics" in dead and "refused" in dead
    assert attempts(lines(done.stdout)) == DELIVERED


def test_what_answers_is_merged_whatever_the_others_do() -> None:
    """--url asks no database. One worker is well; the rest are not there, slow for ever, no worker,
    or in error.
    """

    def slow(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        peer.drip(b"# " * 50000, interval_s=0.2)

    text = b"# TYPE webhookd_claims_total counter\nwebhookd_claims_total 7\n"
    good = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text
    with (
        Receiver(answering(good)) as well,
        Receiver(slow) as dripping,
        Receiver(answering(OK)) as other,
        Receiver(answering(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")) as wrong,
    ):
        bad = [dripping.url("/metrics"), other.url(""), wrong.url("/metrics"), "http://127.0.0.1:1"]
        done = webhookd("metrics", *(f"--url={url}" for url in (well.url("/"), *bad)))
        assert well.requests[0].startswith(b"GET /metrics HTTP/1.1\r\n")
    assert done.returncode == 1
    assert lines(done.stdout) == {"webhookd_claims_total": 7.0}
    by_port = {line.split("127.0.0.1:")[1].split("/")[0]: line for line in done.stderr.splitlines()}
    assert "no answer within 2 s" in by_port[str(dripping.port)]
    assert "not Prometheus' text format" in by_port[str(other.port)]
    assert "HTTP 404" in by_port[str(wrong.port)]
    assert "refused" in by_port["1"]
    assert len(by_port) == 4


def test_an_endless_answer_is_cut_off() -> None:
    def endless(peer: Peer) -> None:
        peer.read_request()
        bomb = gzip.compress(b"#" * 70_000_000)
        head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(
            bomb
        )
        peer.send(head + bomb)

    with Receiver(endless) as receiver:
        done = webhookd("metrics", *PATIENT, "--url", receiver.url("/metrics"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "longer than 64 MB" in done.stderr.splitlines()[0]


def test_without_any_worker_it_fails_in_one_line(database: Database) -> None:
    assert_refused(
        webhookd("metrics", *PATIENT, dsn=database.dsn), "no worker has reported", code=1
    )
    done = webhookd("metrics", "--json", "--url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "webhookd: no worker answered"


def test_a_post_that_is_not_taken_is_one_line_and_exit_1() -> None:
    ca = trustme.CA()
    with Receiver(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nup 1 \r\n ")) as worker:
        with Receiver(
            answering(b"HTTP/1.1 307 Elsewhere\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n")
        ) as ingest:
            done = webhookd("metrics", *PATIENT, "--url", worker.url(), "--post", ingest.url())
            assert_refused(done, "--post", "HTTP 307", code=1)
            assert len(ingest.requests) == 1, "redirects are not followed"
        tls = trustme_context(ca)
        with Receiver(answering(OK), tls=tls) as untrusted:
            refused = webhookd(
                "metrics", *PATIENT, "--url", worker.url(), "--post", untrusted.url()
            )
            assert_refused(refused, "--post", "certificate verify failed", code=1)
        gone = webhookd("metrics", *PATIENT, "--url", worker.url(), "--post", "http://127.0.0.1:1/")
        assert_refused(gone, "--post", "refused", code=1)


def trustme_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--post", "ftp://127.0.0.1/"], ["--post", "https://"]),
        (["--post", "https://user:hunter2@127.0.0.1/"], ["--post", "credentials"]),
        (["--url", "unix:///tmp/x"], ["--url", "https://"]),
        (["--targets", "--url", "http://127.0.0.1:1"], ["--targets"]),
    ],
)
def test_options_that_cannot_be_are_refused(arguments: list[str], words: list[str]) -> None:
    done = webhookd("metrics", *arguments, dsn="host=/nonexistent-directory")
    assert_refused(done, *words)
    assert "hunter2" not in done.stderr
