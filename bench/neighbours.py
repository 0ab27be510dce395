"""The neighbours of bench.bulkheads: webhooks of one kind, all with a backlog, and the victim."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.deliveries import QUEUE, Connection, body_sql
from bench.sink import SlowSink, receiver
from tests.support.name_server import SILENT, NameServer, name_server
from tests.support.receivers import black_hole, refusing

KINDS = ("slow", "silent", "dead", "unregistered", "mixed")
ANSWER_S = 4.8  # of a slow receiver: just within the default --timeout
SLOW_SHARE = 0.4  # of mixed neighbours; the others' names are silent
ROWS_A_STRANGER = 100  # rows for each id that is not registered
# Numbers of the neighbours' bodies; the victim counts from 0.
_NEIGHBOURS_N = 10**9

VICTIM = 1
FIRST, UNREGISTERED = 1000, 10**6


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Receivers and name server of a whole run."""

    fast: SlowSink
    slow: SlowSink
    names: NameServer
    refusing_port: int
    black_hole_port: int


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Start the receivers and the name server. Blocks until they run."""
    with ExitStack() as stack:
        yield Surroundings(
            fast=stack.enter_context(receiver()),
            slow=stack.enter_context(receiver(ANSWER_S)),
            names=stack.enter_context(name_server()),
            refusing_port=stack.enter_context(refusing()),
            black_hole_port=stack.enter_context(black_hole()),
        )


def register_victim(connection: Connection, around: Surroundings) -> None:
    """Register the victim with defaults. Its URL has a name, so that it needs lookups."""
    port = around.fast.url.rpartition(":")[2]
    _register(connection, VICTIM, [f"http://victim.bench.test:{port}/1"])


def insert_for_victim(connection: Connection, number: int) -> None:
    """Insert the victim's delivery *number*, which is its body's "n"."""
    connection.execute(
        f"INSERT INTO {QUEUE} (webhook_id, message_body)"
        f" VALUES ({VICTIM}, ({body_sql(str(number))})::jsonb)".encode()
    )


def add_neighbours(
    connection: Connection, around: Surroundings, kind: str, count: int, *, rows_each: int
) -> None:
    """Register *count* neighbours with *rows_each* due deliveries. Of *kind* unregistered, *count*
    is the number of rows.
    """
    if kind == "unregistered":
        _insert(connection, UNREGISTERED, max(1, count // ROWS_A_STRANGER), count)
    elif count:
        _register(connection, FIRST, _urls(around, kind, count))
        _insert(connection, FIRST, count, count * rows_each)


def slow_count(kind: str, count: int) -> int:
    """Return how many of *count* neighbours have a slow receiver."""
    return {"slow": count, "mixed": int(count * SLOW_SHARE)}.get(kind, 0)


def _urls(around: Surroundings, kind: str, count: int) -> list[str]:
    """Return the neighbours' URLs. Every second dead receiver refuses, the others drop packets."""
    slow = slow_count(kind, count)
    urls = [f"{around.slow.url}/{number}" for number in range(slow)]
    ports = (around.refusing_port, around.black_hole_port)
    for number in range(slow, count):
        if kind == "dead":
            urls.append(f"http://127.0.0.1:{ports[number % 2]}/{number}")
        else:
            # Each in a domain of its own: a limit for one domain does not bound them together.
            urls.append(f"http://{SILENT}.neighbour-{number}.test:8080/{number}")
    return urls


def _register(connection: Connection, first: int, urls: list[str]) -> None:
    connection.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url)"
        " SELECT %s + n - 1, url FROM unnest(%s::text[]) WITH ORDINALITY AS u (url, n)",
        [first, urls],
    )


def _insert(connection: Connection, first: int, webhooks: int, rows: int) -> None:
    """Insert *rows* for *webhooks* in turn, in one statement."""
    statement = (
        f"INSERT INTO {QUEUE} (webhook_id, message_body)"
        f" SELECT %s + i %% %s, ({body_sql(f'({_NEIGHBOURS_N} + i)')})::jsonb"
        " FROM generate_series(0, %s - 1) i"
    )
    connection.execute(statement.encode(), [first, webhooks, rows])
