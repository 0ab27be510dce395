"""Producers write bodies of every kind."""

import hashlib
import json
import random

import pytest

from tests.storm.sink import Sink, delivery_of
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, wait_until_ready
from tests.support.receivers import Peer

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]
INSERT = (
    "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
    " VALUES (%s, %s::jsonb) RETURNING delivery_id"
)


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
    """Return some characters of a Unicode plane, including those that JSON escapes."""
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
    """Return JSON text that a producer might write: any character, any number, spaces, escapes,
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
    with HashingSink() as sink, Daemon(storm.database.dsn, "--max-body", "64M") as daemon:
        storm.register(
            sink,
            settings="timeout_seconds = 60,"
            " secret = 'whsec_' || encode(sha256('secret'), 'base64')",
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
            "SELECT delivery_id, encode(sha256(convert_to(message_body::text, 'UTF8')), 'hex')"
            " FROM pggit.alert_delivery_queue"
        )
        assert {delivery_id: {digest} for delivery_id, digest in stored} == sink.hashes
