"""`webhookd metrics`: the metrics of all workers as one exposition, for people, scripts, and other
monitoring systems.
"""

import json
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from webhookd.cli.options import connection_options, load_settings
from webhookd.config.load import Config
from webhookd.errors import UnusableError, WebhookdError
from webhookd.text import shown
from webhookd.transport.background import in_background

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_POST_S = 5.0
_MOST_BYTES = 64 * 1024 * 1024  # of one worker's answer, unpacked
_CHUNK_BYTES = 64 * 1024
_LOOPBACK = ("127.", "[::1]", "localhost")


@dataclass(slots=True)
class Scrape:
    """One worker's endpoint, and what came of asking it: its *families*, or the *error*."""

    url: str
    families: "Sequence[Metric]" = ()
    error: str | None = None


@click.command()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON: at, workers [url, error], metrics [name, type, labels, value]",
)
@click.option("--post", "post_url", metavar="URL", help="Send that JSON to URL by POST.")
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="URL",
    help="Ask this worker, and no database; repeatable.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 600, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="For a worker's answer.",
)
@click.option(
    "--targets",
    is_flag=True,
    help="Print where all workers are, for Prometheus' file or HTTP service discovery.",
)
@connection_options
@click.pass_context
def metrics(
    ctx: click.Context,
    /,
    as_json: bool,
    post_url: str | None,
    urls: tuple[str, ...],
    timeout_s: float,
    targets: bool,
    **_: object,
) -> None:
    """Print the metrics of all workers as one.

    Counters and histograms are summed, the queue's depth is the largest that a worker saw, and a
    worker that fails shows. Exit 1 if a worker does not answer; the others' metrics are printed, or
    sent, all the same.
    """
    from webhookd.cli import output

    if targets:
        if as_json or post_url or urls:
            raise click.UsageError("--targets goes with none of --json, --post and --url", ctx)
        output.print_json(_targets(load_settings(ctx).config))
        return
    checked_post_url = None if post_url is None else _checked_url("--post", post_url)
    given = [
        Scrape(_checked_url("--url", url, default_path="/metrics")) for url in dict.fromkeys(urls)
    ]
    scrapes = given or _known_workers(load_settings(ctx).config)
    _scrape_all(scrapes, timeout_s)
    for scrape in scrapes:
        if scrape.error is not None:
            click.echo(f"webhookd: {shown(scrape.url)}: {shown(scrape.error)}", err=True)
    if all(scrape.error is not None for scrape in scrapes):
        raise WebhookdError("no worker answered")
    _put_out(scrapes, as_json=as_json, post_url=checked_post_url)
    ctx.exit(1 if any(scrape.error is not None for scrape in scrapes) else 0)


def _put_out(scrapes: Sequence[Scrape], *, as_json: bool, post_url: str | None) -> None:
    from webhookd.cli import output
    from webhookd.metrics import merge

    families = merge.merge(scrape.families for scrape in scrapes)
    series = merge.to_json(families)
    report = {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "workers": [{"url": scrape.url, "error": scrape.error} for scrape in scrapes],
        "metrics": series,
    }
    if as_json:
        output.print_json(report)
    elif post_url is None:
        click.echo(merge.to_text(families), nl=False)
    if post_url is not None:
        [answer] = _all_within(_POST_S, [partial(_post, post_url, json.dumps(report).encode())])
        if isinstance(answer, BaseException):
            raise WebhookdError(f"--post: {_in_words(answer)}")
        click.echo(f"{len(series)} series sent: {answer}", err=as_json)


def _targets(config: Config) -> list[dict[str, object]]:
    from webhookd.admin import database
    from webhookd.metrics.discovery import target_groups

    with database.connect(config) as connection:
        rows = database.fetch(connection, "worker_targets")
    return target_groups((row["worker_id"], row["metrics_address"]) for row in rows)


def _known_workers(config: Config) -> list[Scrape]:
    from webhookd.admin import database

    with database.connect(config) as connection:
        rows = database.fetch(connection, "metrics_addresses")
    if not rows:
        raise WebhookdError(
            "no worker has reported to this database in the last minute: `webhookd doctor` says "
            "more"
        )
    here = socket.gethostname()
    scrapes = {}
    for row in rows:
        url = f"http://{row['metrics_address']}/metrics"
        if row["host"] != here and row["metrics_address"].startswith(_LOOPBACK):
            # Asked from here, that address is somebody else.
            error = f"{row['worker_id']} on {row['host']} can be asked on that host only: start it with --metrics-host"
            scrapes[row["host"], url] = Scrape(url, error=error)
        else:
            scrapes["", url] = Scrape(url)
    return list(scrapes.values())


def _checked_url(option: str, url: str, *, default_path: str = "/") -> str:
    """Return *url*, with *default_path* where it has none; raise `UnusableError` unless it is an
    http or https URL.
    """
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        parsed = parse_url(url)
    except LocationParseError:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.auth:
        raise UnusableError(f"{option} must be an http:// or https:// URL without credentials")
    return parsed._replace(path=default_path).url if parsed.path in (None, "/") else parsed.url


def _scrape_all(scrapes: Sequence[Scrape], timeout_s: float) -> None:
    """Ask all that have no error yet, at once, and write what came of it into them. Blocks for
    *timeout_s*, and for parsing.
    """
    from webhookd.metrics import merge

    to_ask = [scrape for scrape in scrapes if scrape.error is None]
    answers = _all_within(timeout_s, [partial(_get, scrape.url, timeout_s) for scrape in to_ask])
    for scrape, answer in zip(to_ask, answers, strict=True):
        if isinstance(answer, BaseException):
            scrape.error = _in_words(answer)
            continue
        try:
            scrape.families = merge.parse(answer)
        except ValueError as error:
            scrape.error = str(error)
        else:
            scrape.error = None if scrape.families else "the answer holds no metrics"


def _all_within(seconds: float, calls: Sequence[Callable[[], str]]) -> list[str | BaseException]:
    """Return what each of *calls*, all made at once, returned or raised; `TimeoutError` for those
    that took longer.
    """
    # A deadline of our own: a socket's timeout begins anew with every byte of a peer that sends one
    # a second.
    futures = [in_background(call, name="webhookd-scrape") for call in calls]
    ended, _ = wait(futures, timeout=seconds)
    late = TimeoutError(f"no answer within {seconds:g} s")
    return [
        (future.exception() or future.result()) if future in ended else late for future in futures
    ]


def _get(url: str, timeout_s: float) -> str:
    import urllib3

    headers = {"user-agent": _user_agent(), "accept": "text/plain;version=0.0.4"}
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
                if len(body) > _MOST_BYTES:
                    raise WebhookdError(f"the answer is longer than {_MOST_BYTES // 1024**2} MB")
            return body.decode("utf-8")
        finally:
            answer.close()


def _post(url: str, body: bytes) -> str:
    import urllib3

    headers = {"user-agent": _user_agent(), "content-type": "application/json"}
    with urllib3.PoolManager() as pool:
        answer = pool.request(
            "POST",
            url,
            body=body,
            headers=headers,
            timeout=_POST_S,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        answer.close()  # the status is all that counts
        if not 200 <= answer.status < 300:
            raise WebhookdError(f"HTTP {answer.status}")
        return f"HTTP {answer.status}"


def _user_agent() -> str:
    from webhookd.transport.request import USER_AGENT

    return USER_AGENT


def _in_words(error: BaseException) -> str:
    """Return what went wrong, without the connection object that urllib3 puts in front."""
    text = re.sub(r"^(<[^>]*>|\w+\([^)]*\)): ", "", str(error))
    return " ".join(text.split()) or type(error).__name__
