"""The endpoint over real sockets: scrapes, probes and clients that misbehave."""

import gzip
import http.client
import logging
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt
from webhookd.metrics.discovery import TargetGroups
from webhookd.metrics.endpoint import Endpoint

HANG_GUARD_S = 20


class Served:
    """A running endpoint on a port of its own; *alive* and *ready* are what the checks answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.port: int = sock.getsockname()[1]
        self.metrics = Metrics("worker-1", max_webhooks=50)
        self.alive = (True, "ok")
        self.ready = (True, "ok")
        self.targets: TargetGroups | None = None
        self.endpoint = Endpoint(
            sock,
            self.metrics,
            alive=lambda: self.alive,
            ready=lambda: self.ready,
            targets=lambda: self.targets,
        )

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_GUARD_S)
        try:
            connection.request(
                method,
                path,
                headers={name.replace("_", "-"): value for name, value in headers.items()},
            )
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), HANG_GUARD_S)

    def send_raw(self, request: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(request)
            return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def served(sock: socket.socket) -> Iterator[Served]:
    served = Served(sock)
    served.endpoint.start()
    yield served
    served.endpoint.stop()


def observe(metrics: Metrics, *webhook_ids: int) -> None:
    metrics.observe_attempts(
        ObservedAttempt(webhook_id, AttemptStatus.DELIVERED, 0.25) for webhook_id in webhook_ids
    )


def test_a_scrape_gets_the_text_format_with_the_current_counts(served: Served) -> None:
    observe(served.metrics, 1001, 1001)
    response, body = served.ask("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in parse_text(body.decode())}
    delivered = [
        sample.value
        for sample in families["webhook_deliveries"].samples
        if sample.labels["status"] == "delivered"
    ]
    assert delivered == [2]
    observe(served.metrics, 1001)
    assert (
        b'webhook_deliveries_total{status="delivered",webhook_id="1001"} 3'
        in served.ask("/metrics?x=1")[1]
    )


def test_a_scraper_that_accepts_openmetrics_gets_openmetrics(served: Served) -> None:
    observe(served.metrics, 1001)
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    response, body = served.ask("/metrics", Accept=accept)
    assert response.headers["Content-Type"].startswith(
        "application/openmetrics-text; version=1.0.0"
    )
    families = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
    assert "webhook_deliveries" in {family.name for family in families}


def test_prometheus_sees_a_new_webhook_at_zero_first_and_others_do_not(served: Served) -> None:
    observe(served.metrics, 1001)

    def delivered(**headers: str) -> bytes:
        body = served.ask("/metrics", **headers)[1]
        return next(
            line
            for line in body.splitlines()
            if line.startswith(b'webhook_deliveries_total{status="delivered"')
        )

    assert delivered().endswith(b" 1")
    assert delivered(X_Prometheus_Scrape_Timeout_Seconds="5").endswith(b" 0")
    assert delivered(X_Prometheus_Scrape_Timeout_Seconds="5").endswith(b" 1")


def test_the_answer_is_compressed_for_those_who_ask(served: Served) -> None:
    observe(served.metrics, *range(50))
    response, body = served.ask("/metrics", Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == served.ask("/metrics")[1]


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip;q=0", False),
        ("deflate, gzip; q=0.000", False),
        ("gzip;q=nonsense", False),
        ("GZIP ;Q=0.5, identity;q=0.1", True),
        ("identity, gzip;q=1.0", True),
    ],
)
def test_gzip_with_a_weight_of_zero_is_refused(
    served: Served, accepted: str, compressed: bool
) -> None:
    response, _ = served.ask("/metrics", Accept_Encoding=accepted)
    assert (response.headers["Content-Encoding"] == "gzip") is compressed


def test_probes_answer_200_or_503_with_one_line_of_reason(served: Served) -> None:
    served.ready = (False, "draining:\n3 deliveries in flight")
    response, body = served.ask("/readyz")
    assert (response.status, body) == (503, b"draining: 3 deliveries in flight\n")
    response, body = served.ask("/healthz")
    assert (response.status, body) == (200, b"ok\n")
    served.alive, served.ready = (False, "dispatcher stalled"), (True, "ok")
    assert served.ask("/healthz")[0].status == 503
    assert served.ask("/readyz")[0].status == 200


def test_head_has_the_headers_of_get_and_no_body(served: Served) -> None:
    for path in ("/metrics", "/healthz"):
        got, head = served.ask(path), served.ask(path, "HEAD")
        assert (head[0].status, head[1]) == (200, b"")
        assert head[0].headers["Content-Length"] == str(len(got[1]))


def test_other_paths_are_404_and_other_methods_405(served: Served) -> None:
    for path in ("/", "/metrics/", "/metricsx", "/favicon.ico"):
        assert served.ask(path)[0].status == 404
    response, _ = served.ask("/metrics", "POST")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /healthz HTTP/1.0\n\n", b"200"),
        (
            b"GET http://worker.example:9464/healthz?x HTTP/1.1\r\nHost: worker.example\r\n\r\n",
            b"200",
        ),
        (b"GET http://worker.example HTTP/1.1\r\nHost: worker.example\r\n\r\n", b"404"),
        (b"GET /http://worker.example/healthz HTTP/1.1\r\n\r\n", b"404"),
        (b"\r\nGET /healthz HTTP/1.1\nHost: x\r\n\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"200"),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 5\r\n\r\n", b"405"),
        (b"GET /healthz HTTP/2.0\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nAccept: a\rSet-Cookie: b\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000, b"431"),
    ],
)
def test_odd_requests_get_an_answer_and_disturb_no_other(
    served: Served, request_bytes: bytes, status: bytes
) -> None:
    assert served.send_raw(request_bytes).split(b" ")[1] == status
    assert served.ask("/healthz")[0].status == 200


def test_a_request_in_pieces_is_answered_when_it_is_complete(served: Served) -> None:
    with served.connect() as client:
        for piece in (b"GET /heal", b"thz HTTP/1.1\r\nHost: x\r", b"\n\r"):
            client.sendall(piece)
            assert served.ask("/healthz")[0].status == 200
        client.sendall(b"\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_silent_clients_however_many_do_not_block_a_scrape(served: Served) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(served.connect()) for _ in range(200)]
        assert served.ask("/metrics")[0].status == 200
        # More than the endpoint keeps: the oldest were let go at once, the newest may still speak.
        for client in silent[:100]:
            client.setblocking(False)
            assert client.recv(1) == b""
        silent[-1].sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert silent[-1].recv(12) == b"HTTP/1.1 200"


def test_a_client_that_never_completes_its_request_is_dropped(served: Served) -> None:
    with served.connect() as client:
        client.sendall(b"GET /metrics HTT")
        assert client.recv(1) == b""


def test_clients_that_do_not_read_their_answer_block_no_other_and_get_all_of_it_later(
    sock: socket.socket,
) -> None:
    # Accepted connections inherit it: the answer is many times what the kernel takes at once.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    served = Served(sock)
    served.endpoint.start()
    observe(served.metrics, *range(50))
    try:
        with ExitStack() as stack:
            lazy = [stack.enter_context(socket.socket()) for _ in range(10)]
            for client in lazy:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(HANG_GUARD_S)
                client.connect(("127.0.0.1", served.port))
                client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert served.ask("/healthz")[0].status == 200
            received = b"".join(iter(lambda: lazy[-1].recv(65536), b""))
            assert received.partition(b"\r\n\r\n")[2] == served.ask("/metrics")[1]
    finally:
        served.endpoint.stop()


def test_a_client_that_resets_its_connection_disturbs_no_other(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for request in (b"", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with served.connect() as client:
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert served.ask("/metrics")[0].status == 200
    assert caplog.records == []


def test_requests_are_not_logged_but_a_fault_is_and_the_endpoint_lives_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    served.ask("/metrics")
    assert caplog.records == []

    def broken() -> bool:
        raise RuntimeError("a bug")

    served.metrics.set_health_check(broken)
    with pytest.raises(http.client.RemoteDisconnected):
        served.ask("/metrics")
    assert [record.getMessage() for record in caplog.records] == [
        "metrics endpoint fault, connections dropped"
    ]
    assert served.ask("/healthz")[0].status == 200


def test_after_stop_the_socket_still_listens_and_the_next_worker_answers_who_waited(
    sock: socket.socket,
) -> None:
    first = Served(sock)
    first.endpoint.start()
    assert first.ask("/healthz")[0].status == 200
    first.endpoint.stop()
    with first.connect() as waiting:
        waiting.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        # The kernel takes the connection, but there is no answer: the endpoint's thread has ended.
        with selectors.DefaultSelector() as selector:
            selector.register(waiting, selectors.EVENT_READ)
            assert selector.select(0) == []
        second = Served(sock)
        second.endpoint.start()
        try:
            assert waiting.recv(12) == b"HTTP/1.1 200"
        finally:
            second.endpoint.stop()


def test_two_workers_may_accept_from_one_socket_during_a_hand_over(
    sock: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    workers = [Served(sock), Served(sock)]
    for worker in workers:
        worker.endpoint.start()
    try:
        for _ in range(100):
            assert workers[0].ask("/healthz")[0].status == 200
        assert caplog.records == []
    finally:
        for worker in workers:
            worker.endpoint.stop()
