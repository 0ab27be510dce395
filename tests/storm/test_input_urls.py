"""Operators register URLs of every bad kind, or none."""

import random
import socket

import pytest

from tests.storm.sink import Sink
from tests.storm.storm import QUICK_RETRIES, Storm
from tests.support.daemon import Daemon, wait_until_ready
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]
# Not http://localhost and the like: nothing may listen there.
BAD_URLS = [
    *(
        "",
        " ",
        "x",
        "/",
        "//",
        "http:",
        "http:/",
        "http://",
        "https://",
        "http:///",
        "http:127.0.0.1",
        "://",
        "\x01",
        "\n",
    ),
    *(
        "'",
        "é",
        "tel:1",
        "ftp://x/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "javascript:alert(1)",
        "unix:///x",
        "data:,x",
    ),
    *(
        "http://user:secret@127.0.0.1/",
        "http://127.0.0.1/#x",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "http://a:-1/",
    ),
    *(
        "http://127.0.0.1:x/",
        "http://127.0.0.1:99999999999999999999/",
        "http://[::1/",
        "http://::1/",
        "http://[::1%25lo]/",
    ),
    *(
        "http://[fe80::1%25lo]/",
        "http://[::]:9/",
        "http://[v1.x]/",
        "http://[]/",
        "http://127.0.0.1\\@x/",
        "http://127.0.0.1 /",
    ),
    *(
        "http://127.0.0.1/\r\nx-y: z",
        "http://x y/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/",
        "http://0.0.0.0:9/",
    ),
    *(
        "http://255.255.255.255/",
        "http://224.0.0.1/",
        "http://[ff02::1]/",
        "http://..",
        "http://.a/",
        "http://a..b/",
    ),
    "http://-a-/",
    *(
        "http://" + "a" * 64 + ".test/",
        "http://" + "a." * 200 + "test/",
        "http://*/",
    ),
    *(
        "http://" + "x" * 8000,  # the registry refuses more than 8 KiB
        "http://%31%32%37/",
        "http://①②⑦.⓪.⓪.①/",
        "http://☃.test/",
        "http://\u202e/",
        "http://xn--/",
    ),
    *(
        "http://xn--a-ecp.ru/",
        "http://faß\u0301.test/",
        "http://\U0001f4a9.test/",
        "http://a\u00ad.test/",
        "http://999.1.1.1/",
    ),
    *(
        "http://127.0.0.1:9/\ufffd\U0010ffff",
        "http://1e400/",
        "http://0x7f000001:9/",
        "http://127.1:9/",
        "http://0177.1:9/",
    ),
    *(
        "http://2130706433:9/",
        "http://4294967296/",
        "HTTPS://127.0.0.1:9",
        "http://127.0.0.1:9?x",
        "http://127.0.0.1:9/%",
    ),
    *("http://127.0.0.1:9/%zz", "http://127.0.0.1:9/{}|^`", "http://127.0.0.1:9//..//"),
]
PIECES = [
    "http",
    "https",
    *":/@#?[]%.&=\t\\",
    "//",
    "%00",
    "127.0.0.1",
    "::1",
    ":9",
    "a",
    "..",
    "é",
    "\U0001f4a9",
    "0x7f",
]


def random_url(rng: random.Random) -> str:
    """Return a bad URL, made of pieces of good ones."""
    return "http://" * rng.randrange(2) + "".join(rng.choices(PIECES, k=rng.randrange(1, 8)))


def test_urls_of_every_bad_kind(storm: Storm) -> None:
    # Nothing must leave this machine, even if a filter fails.
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        pytest.skip("NOT ALONE: run inside `unshare --net`, as root's `make storm` does")
    with Sink() as sink, Daemon(storm.database.dsn, *QUICK_RETRIES) as daemon:
        storm.register(sink)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        urls = BAD_URLS + [random_url(storm.random) for _ in range(300)]
        bad = range(10_000, 10_000 + len(urls))
        storm.database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second, timeout_seconds)"
            " SELECT 9999 + n, url, 0, 2 FROM unnest(%s::text[]) WITH ORDINALITY AS u (url, n)",
            [urls],
        )
        storm.inject("bad URL", len(urls))
        storm.insert(10 * len(urls), webhooks=len(urls), first=bad[0], max_retries=0)
        storm.insert(500, webhooks=50, first=50_000)  # these are not registered
        storm.inject("unregistered webhook", 50)
        storm.insert(5000)
        with storm.recovering():
            eventually(
                lambda: unfinished_between(storm, 2000, 2049) == 0,
                60.0,
                what="the good URLs' deliveries",
            )
        # Those that no request can be sent to are held. The others were attempted, and failed.
        eventually(
            lambda: unfinished_between(storm, bad[0], bad[-1]) == of_held_webhooks(storm),
            120.0,
            what="the bad URLs' deliveries",
        )
        assert of_held_webhooks(storm) > 5 * len(urls)
        spent = (
            "SELECT count(*)::int FROM pggit.alert_delivery_queue q"
            " JOIN pggit.webhook_health_metrics h USING (webhook_id)"
            " WHERE h.blocked_by = 'configuration'"
            " AND (delivery_status <> 'pending' OR q.retry_count <> 0 OR q.attempts <> 0)"
        )
        assert storm.database.execute(spent) == [(0,)]
        assert set(daemon.workers()) == workers
        reasonless = (
            "SELECT webhook_id, event_details FROM pggit.alert_delivery_log"
            f" WHERE webhook_id >= {bad[0]}"
            " AND (event_type <> 'failed' OR coalesce(event_details->>'reason', '') = '')"
        )
        assert not storm.database.execute(reasonless)
        assert unfinished_between(storm, 50_000, 50_049) == 500
        storm.register(sink, first=50_000)
        storm.database.execute(
            f"UPDATE pggit.webhooks SET url = '{sink.url('')}/corrected'"
            f" WHERE webhook_id >= {bad[0]} AND webhook_id < 50000"
        )
        storm.settle()
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
        storm.account(sink, may_fail=bad)


def of_held_webhooks(storm: Storm) -> int:
    """Return how many deliveries wait for webhooks that are held, each with a reason."""
    found: int = storm.database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue"
        " JOIN pggit.webhook_health_metrics USING (webhook_id)"
        " WHERE blocked_by = 'configuration' AND blocked_reason <> ''"
    )[0][0]
    return found


def unfinished_between(storm: Storm, first: int, last: int) -> int:
    """Return how many deliveries of webhooks *first* to *last* are unfinished."""
    found: int = storm.database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue"
        " WHERE delivery_status IN ('pending', 'retrying', 'sending')"
        f" AND webhook_id BETWEEN {first} AND {last}"
    )[0][0]
    return found
