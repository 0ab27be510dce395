"""What producers and operators write: bodies, URLs, times and limits of every kind, and changes in
the middle of a delivery.
"""

import hashlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.storm.sink import ERROR, Answer, Sink, delivery_of
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, refused, wait_until_ready
from tests.support.receivers import OK, Peer
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]

OPTIONS = ("--circuit-open", "1", "--retry-base", "0.2", "--drain-timeout", "10")
INSERT = "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (%s, %s::jsonb) RETURNING delivery_id"


class HashingSink(Sink):
    """A sink that keeps the hash of each delivery's body, and the heads of a few."""

    def __init__(self) -> None:
        self.hashes: dict[int, set[str]] = {}
        super().__init__()

    def answer(self, peer: Peer, request: bytes) -> None:
        body = request.partition(b"\r\n\r\n")[2]
        self.hashes.setdefault(delivery_of(request), set()).add(hashlib.sha256(body).hexdigest())
        super().answer(peer, request)


def characters_of_plane(plane: int) -> str:
    """Return some characters of a Unicode plane, those that JSON escapes among them."""
    return "".join(chr(plane * 0x10000 + low) for low in (0x21, 0x22, 0x5C, 0x100, 0xFFF0, 0xFFFD))


SPECIAL_BODIES = [
    *(
        "null",
        '""',
        "[]",
        "{}",
        "0",
        "-0",
        "true",
        "false",
        '" "',
        '"\\\\"',
        "[null]",
        '{"": ""}',
        '{"a": {"a": {}}}',
    ),
    *(
        "1e400",
        "-1e-400",
        "1E+10",
        "1.0",
        "1.00",
        "-0.0",
        "0.1000000000000000055511151231257827",
        "1" + "0" * 40,
        "9" * 10_000,
    ),
    *(
        "0." + "0" * 10_000 + "1",
        "123456789012345678901234567890.5e-20",
        str(2**63),
        str(-(2**64)),
        "1e131071",
    ),
    *("[" * depth + "]" * depth for depth in (1, 100, 1000, 5000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (100, 1000, 5000)),
    *(
        '"\\u0001\\u001f\\u007f"',
        '"\\ud83d\\ude00"',
        '"\\udbff\\udfff"',
        '"\\uffff\\ufffe"',
        '"\\u2028\\u2029"',
    ),
    '"\\u202e\\ufeff"',
    '{"\\u00e9": 1, "e\\u0301": 2}',
    *(json.dumps(characters_of_plane(plane), ensure_ascii=False) for plane in range(17)),
    *(json.dumps(characters_of_plane(plane)) for plane in range(17)),
    *(json.dumps("x" * size) for size in (16_000, 16_384, 65_536, 1_000_000, 10_000_000)),
    json.dumps("\U0001f4a9" * 2_500_000, ensure_ascii=False),
    "[" + ",".join(["1e3"] * 1_000_000) + "]",
    '"HTTP/1.1 200 OK\\r\\n\\r\\nwebhook-id: x_1\\r\\n"',
]


def random_body(rng: random.Random, depth: int = 0) -> str:
    """Return JSON text as producers might write it: any character, any number, spaces, escapes,
    repeated keys.
    """
    kind = rng.randrange(6 if depth < 6 else 4)
    if kind == 0:
        return rng.choice(["null", "true", "false", '""', "[]", "{}"])
    if kind == 1:
        digits = "".join(rng.choices("0123456789", k=rng.randrange(1, 40)))
        exponent = rng.choice(["", f"e{rng.randrange(-500, 500)}", f"E+{rng.randrange(300)}"])
        return f"{rng.choice(['', '-'])}{rng.randrange(1, 10)}{digits}.{digits}{exponent}"
    if kind in (2, 3):
        ranges = rng.choices([(1, 0x80), (1, 0xD800), (0xE000, 0x110000)], k=rng.randrange(30))
        return json.dumps(
            "".join(chr(rng.randrange(*codes)) for codes in ranges), ensure_ascii=rng.random() < 0.5
        )
    parts = [random_body(rng, depth + 1) for _ in range(rng.randrange(6))]
    space = rng.choice(["", " ", "\n\t"])
    if kind == 4:
        return "[" + f"{space},{space}".join(parts) + "]"
    return (
        "{"
        + ",".join(
            f'{space}"{rng.choice("abcé")}{rng.randrange(4)}":{space}{part}' for part in parts
        )
        + "}"
    )


def test_bodies_arrive_byte_for_byte(storm: Storm) -> None:
    with HashingSink() as sink, Daemon(storm.database.dsn) as daemon:
        storm.register(
            sink,
            settings="timeout_seconds = 60, secret = 'whsec_' || encode(sha256('secret'), 'base64')",
        )
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        bodies = SPECIAL_BODIES + [random_body(storm.random) for _ in range(3000)]
        storm.random.shuffle(bodies)
        with storm.database.connect() as connection:
            for index, body in enumerate(bodies):
                connection.execute(INSERT, [2000 + index % 50, body])
        storm.inserted(len(bodies))
        storm.inject("body of a special kind", len(SPECIAL_BODIES))
        storm.settle(timeout_s=120.0)
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink)
        stored = storm.database.execute(
            "SELECT delivery_id, encode(sha256(convert_to(message_body::text, 'UTF8')), 'hex') "
            "FROM pggit.alert_delivery_queue"
        )
        assert {delivery_id: {digest} for delivery_id, digest in stored} == sink.hashes


# Rows as SQL: what a producer may leave out, leave NULL or get wrong. The first group goes out at
# once, the second waits.
ROWS_THAT_GO = [
    "(webhook_id, message_body) VALUES (2001, '1')",
    "(webhook_id, message_body, alert_id, delivery_status, retry_count, max_retries, "
    "next_retry_at, worker_id, created_at,"
    " routed) VALUES (2002, '1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true)",
    "(webhook_id, message_body, delivery_status) VALUES (2003, '1', 'sending')",
    "(webhook_id, message_body, delivery_status) VALUES (2004, '1', 'retrying')",
    "(webhook_id, message_body, alert_id, worker_id) VALUES (2005, '1', -9223372036854775808, "
    "repeat('x', 10000))",
    "(webhook_id, message_body, max_retries) VALUES (2006, '1', 0)",
    "(webhook_id, message_body, max_retries) VALUES (2007, '1', 2147483647)",
    "(webhook_id, message_body, max_retries) VALUES (2008, '1', -1)",
    "(webhook_id, message_body, retry_count, max_retries) VALUES (2009, '1', 2147483647, "
    "2147483647)",
    *(
        f"(webhook_id, message_body, created_at) VALUES (2011, '1', '{when}')"
        for when in (
            "infinity",
            "-infinity",
            "1970-01-01",
            "294276-12-31",
            "4713-01-01 BC",
            "tomorrow",
        )
    ),
    *(
        f"(webhook_id, message_body, next_retry_at) VALUES (2012, '1', '{when}')"
        for when in ("1970-01-01", "4713-01-01 BC", "yesterday")
    ),
    "(webhook_id, message_body, next_retry_at) VALUES (2013, '1', now() + interval '2 seconds')",
    "(webhook_id, message_body, attempted_at, delivered_at, first_attempted_at)"
    " VALUES (2014, '1', 'infinity', '-infinity', '1970-01-01')",
    "(webhook_id, message_body, leases_lost) VALUES (2015, '1', 2)",
    "(webhook_id, message_body, lease_token, lease_until, leased_by) VALUES (2016, '1', 7, "
    "'infinity', gen_random_uuid())",
    "(delivery_id, webhook_id, message_body) VALUES (9223372036854775806, 2017, '1')",
]
ROWS_THAT_WAIT = [
    f"(webhook_id, message_body, next_retry_at) VALUES (2020, '1', '{when}')"
    for when in ("294276-12-31", "tomorrow", "2100-01-01")
]


def test_rows_of_every_kind(storm: Storm) -> None:
    # The first request fails, so that these rows are retried, too.
    def answer(webhook_id: int, nth: int) -> bytes:
        return ERROR if nth == 1 and webhook_id in (*range(2006, 2010), 2011, 2014) else OK

    with Sink(answer) as sink, Daemon(storm.database.dsn, *OPTIONS) as daemon:
        storm.register(sink, settings="circuit_failure_threshold = 1000000")
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        for row in ROWS_THAT_WAIT + ROWS_THAT_GO:
            storm.database.execute(f"INSERT INTO pggit.alert_delivery_queue {row}")
        storm.inject("row of a special kind", len(ROWS_THAT_WAIT + ROWS_THAT_GO))
        columns = "(webhook_id, alert_id, message_body)"
        for _ in range(2):  # identical INSERTs of identical rows are as many deliveries
            same = f"INSERT INTO pggit.alert_delivery_queue {columns} SELECT 2030, 1, '{{}}' FROM generate_series(1, 500)"
            storm.database.execute(same)
        storm.inserted(len(ROWS_THAT_WAIT + ROWS_THAT_GO) + 1000)
        storm.insert(1000, webhooks=15)
        eventually(
            lambda: storm.unfinished() <= len(ROWS_THAT_WAIT),
            60.0,
            what="all but the rows of the future",
        )
        [(began,)] = storm.database.execute("SELECT now()")
        counted = "SELECT min(counted_at) > %s FROM pggit.queue_depth"  # with these rows in it
        eventually(
            lambda: storm.database.execute(counted, [began]) == [(True,)],
            60.0,
            what="the queue's depth is counted",
        )
        assert set(daemon.workers()) == workers
        assert_reads(storm)
        assert storm.unfinished() == len(ROWS_THAT_WAIT)
        storm.database.execute(
            "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() WHERE webhook_id = 2020"
        )
        storm.settle()
        assert daemon.stop() == 0
        assert "record" not in "".join(
            line for line in daemon.log().splitlines() if "level=error" in line
        )
        assert sum(1 for delivery_id in sink.arrivals) == len(ROWS_THAT_WAIT + ROWS_THAT_GO) + 2000
        storm.account(sink, may_fail=[2006, 2008, 2009])


@pytest.mark.every_postgres
def test_infinite_times(storm: Storm) -> None:
    waits = "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at) VALUES (%s, '1', %s)"
    with Sink() as sink, Daemon(storm.database.dsn, *OPTIONS) as daemon:
        storm.register(sink, count=3)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        storm.database.execute(
            waits, [2000, "infinity"]
        )  # nothing else is due: this is what the workers sleep until
        storm.inserted(1)
        storm.inject("next_retry_at is infinity")
        time.sleep(2.0)
        assert set(daemon.workers()) == workers
        storm.database.execute("UPDATE pggit.webhooks SET enabled = false WHERE webhook_id = 2001")
        for webhook_id in (2001, 2002):
            storm.database.execute(waits, [webhook_id, "-infinity"])
            storm.inserted(1)
            storm.inject("next_retry_at is -infinity")
        eventually(lambda: storm.unfinished() == 2)
        assert_reads(storm)
        storm.database.execute("UPDATE pggit.webhooks SET enabled = true")
        storm.database.execute(
            "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() WHERE webhook_id = 2000"
        )
        storm.settle()
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink)


def assert_reads(storm: Storm) -> None:
    """Assert that `status` and `doctor` can read what is there."""
    for command in ("status", "doctor"):
        arguments = [sys.executable, "-m", "webhookd", command, "--dsn", storm.database.dsn]
        shown = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        text = shown.stdout + shown.stderr
        assert shown.returncode in (0, 1), text
        assert "Traceback" not in text
        assert "not examined" not in text, text


def test_negative_retry_count(storm: Storm) -> None:
    with (
        Sink(lambda webhook_id, nth: ERROR if nth == 1 else OK) as sink,
        Daemon(storm.database.dsn, *OPTIONS) as daemon,
    ):
        storm.register(sink, count=1)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        row = "(webhook_id, message_body, retry_count) VALUES (2000, '1', -5)"
        storm.database.execute(f"INSERT INTO pggit.alert_delivery_queue {row}")
        storm.inserted(1)
        storm.inject("negative retry_count")
        storm.settle()
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink)


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
        "http://127.0.0.1/" + "x" * 9000,
    ),
    *(
        "http://" + "x" * 100_000,
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
    if [name for _, name in socket.if_nameindex()] != [
        "lo"
    ]:  # should a filter fail, nothing must leave this machine
        pytest.skip("NOT ALONE: run inside `unshare --net`, as root's `make storm` does")
    with Sink() as sink, Daemon(storm.database.dsn, *OPTIONS) as daemon:
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
        storm.insert(500, webhooks=50, first=50_000)  # nobody has registered these
        storm.inject("unregistered webhook", 50)
        storm.insert(5000)
        with storm.recovering():
            eventually(
                lambda: unfinished_between(storm, 2000, 2049) == 0,
                60.0,
                what="the good URLs' deliveries",
            )
        eventually(
            lambda: unfinished_between(storm, bad[0], bad[-1]) == 0,
            120.0,
            what="the bad URLs' deliveries",
        )
        assert set(daemon.workers()) == workers
        reasonless = (
            "SELECT webhook_id, event_details FROM pggit.alert_delivery_log"
            f" WHERE webhook_id >= {bad[0]} AND (event_type <> 'failed' OR "
            "coalesce(event_details->>'reason', '') = '')"
        )
        assert not storm.database.execute(reasonless)
        assert unfinished_between(storm, 50_000, 50_049) == 500
        storm.register(sink, first=50_000)
        storm.settle()
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
        storm.account(sink, may_fail=bad)


def unfinished_between(storm: Storm, first: int, last: int) -> int:
    """Return how many deliveries of webhooks *first* to *last* are unfinished."""
    found: int = storm.database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE delivery_status IN "
        "('pending', 'retrying', 'sending')"
        f" AND webhook_id BETWEEN {first} AND {last}"
    )[0][0]
    return found


# --- changes in the middle of a delivery

# The status twice: a row that is recorded while the statement waits for it is left alone.
QUEUE = "pggit.alert_delivery_queue"
SENDING = (
    "delivery_status = 'sending' AND delivery_id IN"
    f" (SELECT delivery_id FROM {QUEUE} WHERE delivery_status = 'sending' AND webhook_id = "
    "{id} LIMIT 3)"
)
# Each is run while the webhook's deliveries are in flight.
EDITS = {
    "secret changed": "UPDATE pggit.webhooks SET secret = 'whsec_' || "
    "encode(sha256(random()::text::bytea), 'base64')"
    " WHERE webhook_id = {id}",
    "headers changed": "UPDATE pggit.webhooks SET headers = jsonb_build_object('x-n', "
    "random()::text) WHERE webhook_id = {id}",
    "limits changed": "UPDATE pggit.webhooks SET max_in_flight = 1 + (random() * 20)::int, "
    "timeout_seconds = 5 + random(),"
    " rate_limit_per_second = 100 + 100 * random(), circuit_failure_threshold = 1 + (random() * "
    "3)::int WHERE webhook_id = {id}",
    "URL changed": "UPDATE pggit.webhooks SET url = '{other}/' || webhook_id WHERE webhook_id = "
    "{id}",
    "paused or resumed": "UPDATE pggit.webhooks SET enabled = NOT enabled WHERE webhook_id = {id}",
    "webhook deleted": "DELETE FROM pggit.webhooks WHERE webhook_id = {id}",
    "webhook re-created": "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second, "
    "retry_base_seconds)"
    " VALUES ({id}, '{url}/{id}', 0, 0.2) ON CONFLICT DO NOTHING",
    "circuit reset": "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy', "
    "consecutive_failures = 0"
    " WHERE webhook_id = {id}",
    "queued again in flight": f"UPDATE {QUEUE} SET delivery_status = 'retrying' WHERE {SENDING}",
    "postponed in flight": f"UPDATE {QUEUE} SET delivery_status = 'pending', next_retry_at = "
    "now() + interval '1 second'"
    f" WHERE {SENDING}",
    "body changed in flight": f"UPDATE {QUEUE} SET message_body = '\"changed\"' WHERE {SENDING}",
    "moved to another webhook": f"UPDATE {QUEUE} SET webhook_id = {{id}} + 1, delivery_status = "
    f"'pending' WHERE {SENDING}",
}
CANCEL = f"DELETE FROM {QUEUE} WHERE {SENDING} RETURNING 1"
GIVE_UP = f"UPDATE {QUEUE} SET delivery_status = 'failed' WHERE {SENDING} RETURNING 1"


def slowly(rng: random.Random) -> Answer:
    """Return what answers after a while, now and then with a failure."""

    def answer(webhook_id: int, nth: int) -> bytes:
        time.sleep(0.05)
        return ERROR if rng.random() < 0.1 else OK

    return answer


def changes(storm: Storm, seconds: float) -> Iterator[str]:
    """Yield the names of random edits for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield storm.random.choice([*EDITS, "cancelled by DELETE", "failed by hand"])


def test_changed_in_flight(storm: Storm) -> None:
    webhooks, given_up = range(2000, 2030), 2100
    answer = slowly(storm.random)
    with (
        Sink(answer) as sink,
        Sink(answer) as other,
        Daemon(storm.database.dsn, *OPTIONS) as daemon,
    ):
        storm.register(sink, count=len(webhooks) + 1)  # the last one receives what is moved
        storm.register(sink, count=1, first=given_up)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        storm.insert(6000, webhooks=len(webhooks), max_retries=50)
        storm.insert(1000, webhooks=1, first=given_up, max_retries=50)
        for change in changes(storm, 20.0):
            webhook_id = storm.random.choice(webhooks)
            if change == "cancelled by DELETE":
                gone = len(storm.database.execute(CANCEL.format(id=webhook_id)))
                storm.inserted(-gone)
                storm.inject(change, gone)
            elif change == "failed by hand":
                storm.inject(change, len(storm.database.execute(GIVE_UP.format(id=given_up))))
            else:
                storm.database.execute(
                    EDITS[change].format(id=webhook_id, url=sink.url(""), other=other.url(""))
                )
                storm.inject(change)
            time.sleep(storm.random.uniform(0, 0.02))
        for webhook_id in webhooks:
            storm.database.execute(
                EDITS["webhook re-created"].format(id=webhook_id, url=sink.url(""))
            )
        storm.database.execute(
            "UPDATE pggit.webhooks SET enabled = true, rate_limit_per_second = 0, max_in_flight "
            "= NULL"
        )
        with storm.recovering():
            storm.settle(timeout_s=120.0)
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        turned_away = refused(daemon)
        assert turned_away > 0, "the fence refuses what was changed in flight"
        storm.account(sink, other, may_fail=[given_up], refused=turned_away)


def test_truncated_in_flight(storm: Storm) -> None:
    with Sink(slowly(storm.random)) as sink, Daemon(storm.database.dsn, *OPTIONS) as daemon:
        storm.register(sink, settings="max_in_flight = 3")
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        for _ in range(5):
            storm.insert(1000, max_retries=50)
            arrived = len(sink.arrivals)
            eventually(lambda arrived=arrived: len(sink.arrivals) > arrived + 50)  # type: ignore[misc]
            storm.database.execute("TRUNCATE pggit.alert_delivery_queue")
            storm.inserted(-1000)
            storm.inject("TRUNCATE in flight")
            with (
                storm.recovering()
            ):  # until the next batch is delivered, although the lanes' counters are stranded
                storm.insert(50)
                eventually(lambda: storm.unfinished() == 0, 60.0)
            storm.database.execute("TRUNCATE pggit.alert_delivery_queue")
            storm.inserted(-50)
        storm.insert(1000, max_retries=50)
        storm.settle()
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))
