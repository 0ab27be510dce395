"""The metrics of all workers as one exposition: who is asked, what came of it, where it is sent."""

import json
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import urllib3
from prometheus_client.core import Metric
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from webhookd.admin import database
from webhookd.admin.database import Connection
from webhookd.errors import UnusableError, WebhookdError
from webhookd.metrics import merge
from webhookd.metrics.discovery import TargetGroups, target_groups
from webhookd.transport.background import in_background
from webhookd.transport.request import USER_AGENT

POST_S = 5.0
_MAX_BYTES = 64 * 1024 * 1024  # of one worker's answer, unpacked
_CHUNK_BYTES = 64 * 1024
_LOOPBACK = ("127.", "[::1]", "localhost")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a worker serves its metrics. *error*: why it cannot be asked from this host."""

    url: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Scrape:
    """What came of asking one endpoint: its *families*, or the *error*."""

    url: str
    families: Sequence[Metric] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class FleetMetrics:
    """The merged metrics of the workers that answered, and each worker's scrape."""

    at: datetime
    scrapes: Sequence[Scrape]
    families: Sequence[Metric]

    def as_text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return merge.to_text(self.families)

    def as_json(self) -> dict[str, Any]:
        """Return at, workers [url, error], metrics [name, type, labels, value]."""
        return {
            "at": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "workers": [{"url": one.url, "error": one.error} for one in self.scrapes],
            "metrics": merge.to_json(self.families),
        }


def targets(connection: Connection) -> TargetGroups:
    """Return where all workers are, for Prometheus' service discovery by file or over HTTP."""
    rows = database.fetch(connection, "worker_targets")
    return target_groups((row["worker_id"], row["metrics_address"]) for row in rows)


def endpoints(connection: Connection) -> list[Endpoint]:
    """Return the endpoints of the workers that reported in the last minute.

    Raise `WebhookdError` where there is none.
    """
    rows = database.fetch(connection, "metrics_addresses")
    if not rows:
        raise WebhookdError(
            "no worker has reported to this database in the last minute: `webhookd doctor` says "
            "more"
        )
    here = socket.gethostname()
    found = {}
    for row in rows:
        url = f"http://{row['metrics_address']}/metrics"
        if row["host"] != here and row["metrics_address"].startswith(_LOOPBACK):
            # On this host, that address is another worker or none.
            error = (
                f"{row['worker_id']} on {row['host']} can be asked on that host only: start it "
                "with --metrics-host"
            )
            found[row["host"], url] = Endpoint(url, error)
        else:
            found["", url] = Endpoint(url)
    return list(found.values())


def checked_url(option: str, url: str, *, default_path: str = "/") -> str:
    """Return *url*, with *default_path* where it has none; raise `UnusableError`, which names the
    *option*, unless it is an http or https URL.
    """
    try:
        parsed = parse_url(url)
    except LocationParseError:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.auth:
        raise UnusableError(f"{option} must be an http:// or https:// URL without credentials")
    return parsed._replace(path=default_path).url if parsed.path in (None, "/") else parsed.url


def scrape(asked: Sequence[Endpoint], timeout_s: float) -> FleetMetrics:
    """Ask all these endpoints at once, and merge what they answer. Blocks for *timeout_s*, and for
    parsing.
    """
    reachable = [endpoint for endpoint in asked if endpoint.error is None]
    answers = _all_within(
        timeout_s, [partial(_get, endpoint.url, timeout_s) for endpoint in reachable]
    )
    by_url = dict(zip((endpoint.url for endpoint in reachable), answers, strict=True))
    scrapes = [
        _scrape_of(endpoint.url, by_url[endpoint.url])
        if endpoint.error is None
        else Scrape(endpoint.url, error=endpoint.error)
        for endpoint in asked
    ]
    families = merge.merge(one.families for one in scrapes)
    return FleetMetrics(datetime.now(UTC), scrapes, families)


def post(url: str, metrics: FleetMetrics) -> str:
    """Send *metrics* to *url* as JSON, and return the status of the answer in words.

    Blocks for at most `POST_S`. Raise `WebhookdError` unless the answer is 2xx.
    """
    body = json.dumps(metrics.as_json()).encode()
    [answer] = _all_within(POST_S, [partial(_post, url, body)])
    if isinstance(answer, BaseException):
        raise WebhookdError(f"--post: {_in_words(answer)}")
    return answer


def _scrape_of(url: str, answer: str | BaseException) -> Scrape:
    if isinstance(answer, BaseException):
        return Scrape(url, error=_in_words(answer))
    try:
        families = merge.parse(answer)
    except ValueError as error:
        return Scrape(url, error=str(error))
    return Scrape(url, families, None if families else "the answer holds no metrics")


def _all_within(seconds: float, calls: Sequence[Callable[[], str]]) -> list[str | BaseException]:
    """Return what each of *calls*, all made at once, returned or raised; `TimeoutError` for those
    that took longer.
    """
    # A socket's timeout starts again with every byte, and a peer may send one byte a second. So
    # this deadline is for the whole call.
    futures = [in_background(call, name="webhookd-scrape") for call in calls]
    ended, _ = wait(futures, timeout=seconds)
    late = TimeoutError(f"no answer within {seconds:g} s")
    return [
        (future.exception() or future.result()) if future in ended else late for future in futures
    ]


def _get(url: str, timeout_s: float) -> str:
    headers = {"user-agent": USER_AGENT, "accept": "text/plain;version=0.0.4"}
    with urllib3.PoolManager() as pool:
        answer = pool.request(
            "GET",
            url,
            headers=headers,
            timeout=timeout_s,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            if answer.status != 200:
                raise WebhookdError(f"HTTP {answer.status}")
            body = bytearray()
            for chunk in answer.stream(_CHUNK_BYTES):
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise WebhookdError(f"the answer is longer than {_MAX_BYTES // 1024**2} MB")
            return body.decode("utf-8")
        finally:
            answer.close()


def _post(url: str, body: bytes) -> str:
    headers = {"user-agent": USER_AGENT, "content-type": "application/json"}
    with urllib3.PoolManager() as pool:
        answer = pool.request(
            "POST",
            url,
            body=body,
            headers=headers,
            timeout=POST_S,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        answer.close()  # only the status counts
        if not 200 <= answer.status < 300:
            raise WebhookdError(f"HTTP {answer.status}")
        return f"HTTP {answer.status}"


def _in_words(error: BaseException) -> str:
    """Return what went wrong, without the connection object that urllib3 writes before it."""
    text = re.sub(r"^(<[^>]*>|\w+\([^)]*\)): ", "", str(error))
    return " ".join(text.split()) or type(error).__name__
