"""webhookd and the systems that it is compared with. Each can be installed, started, filled, and
asked whether it is done.

All POST the same bodies to the same sink. A peer runs in a program of bench/peers, which uses it as
its own documentation says. Its job is the body itself; the endpoint follows from the body's number,
so no peer looks a URL up.
"""

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from bench import deliveries
from bench.deliveries import Connection
from bench.fleet import running_fleet
from bench.postgres import Postgres
from bench.sink import Sink
from webhookd.demo import local
from webhookd.errors import UnusableError, WebhookdError
from webhookd.schema.migrate import migrate

HERE = Path(__file__).parent
PEERS = HERE / "peers"
PYTHON = HERE / ".venv" / "bin" / "python"
READY_WITHIN_S = 30.0

_BODY = deliveries.body_sql("n")
# psycopg sends a small number as a smallint, and the sum of two smallints could overflow.
_NUMBERS = (
    "FROM generate_series(%(first)s::int, %(first)s::int + %(count)s::int - 1) AS numbers (n)"
)


class System(ABC):
    """One system in one configuration. `name` is shown; `size` deliveries keep it busy for some
    seconds.
    """

    database: ClassVar[str]
    # Inserts %(count)s deliveries numbered from %(first)s, in the system's own way.
    insert_sql: ClassVar[str]
    incomplete_sql: ClassVar[str]
    empty_sql: ClassVar[str]

    def __init__(self, name: str, *, size: int, processes: int = 1) -> None:
        self.name = name
        self.size = size
        self.processes = processes

    def missing(self) -> str:
        """Return what is not installed; empty if this system can run."""
        return "" if PYTHON.exists() else "bench/.venv (make bench installs it)"

    @abstractmethod
    def install(self, postgres: Postgres) -> None:
        """Create its database anew, with its schema."""

    @abstractmethod
    def command(self, url: str) -> list[str]:
        """Return the command of one of its processes."""

    @contextmanager
    def running(self, postgres: Postgres, sink: Sink) -> Iterator[list[int]]:
        """Empty its queue, start its processes, block until they wait for work, and yield their
        process ids.
        """
        with postgres.connect(self.database) as connection, ExitStack() as stack:
            connection.execute(self.empty_sql.encode())
            variables = [
                f"{name}={value}" for name, value in postgres.environment(self.database).items()
            ]
            pids = []
            for number in range(self.processes):
                log = postgres.home / f"{self.database}-{number}.log"
                process = stack.enter_context(
                    local.program(["env", *variables, *self.command(sink.url)], log)
                )
                pids.append(process.pid)
                _await_ready(self.name, process, log)
            yield pids

    def insert(self, connection: Connection, *, first: int, count: int) -> None:
        """Insert the deliveries numbered from *first* on. As with any client, the statement is
        prepared after some repetitions.
        """
        connection.execute(self.insert_sql.encode(), {"first": first, "count": count})

    def incomplete(self, connection: Connection) -> int:
        """Return how many deliveries are not complete."""
        row = connection.execute(self.incomplete_sql.encode()).fetchone()
        assert row is not None
        return int(row[0])


class Webhookd(System):
    """webhookd with its defaults, except that the rate limit is off and *options* are added.

    *webhooks* share the deliveries evenly. *module* is what `python -m` runs.
    """

    database = "fleet"
    insert_sql = f"""
        INSERT INTO {deliveries.QUEUE} (webhook_id, message_body)
        SELECT 1 + n %% %(webhooks)s, ({_BODY})::jsonb {_NUMBERS}
    """
    incomplete_sql = f"SELECT count(*) FROM {deliveries.QUEUE} WHERE delivery_status <> 'delivered'"

    def __init__(
        self,
        name: str,
        *,
        size: int,
        processes: int = 3,
        webhooks: int = deliveries.WEBHOOKS,
        options: Sequence[str] = (),
        module: str = "webhookd",
    ) -> None:
        super().__init__(name, size=size, processes=processes)
        self._webhooks = webhooks
        self._options = options
        self._module = module

    def missing(self) -> str:
        return ""

    def install(self, postgres: Postgres) -> None:
        migrate(postgres.create(self.database))

    def command(self, url: str) -> list[str]:
        raise NotImplementedError("bench.fleet starts it")

    @contextmanager
    def running(self, postgres: Postgres, sink: Sink) -> Iterator[list[int]]:
        with postgres.connect(self.database) as connection:
            deliveries.empty(connection)
            deliveries.register(connection, sink.url)
        dsn = postgres.dsn(self.database)
        with running_fleet(
            dsn,
            *self._options,
            workers=self.processes,
            certificate=sink.certificate,
            module=self._module,
        ) as fleet:
            yield [fleet.pid]

    def insert(self, connection: Connection, *, first: int, count: int) -> None:
        connection.execute(
            self.insert_sql.encode(), {"first": first, "count": count, "webhooks": self._webhooks}
        )


class Original(System):
    """The shape that webhookd replaces, with *pause_s* between polls. Two processes would send
    each delivery twice.
    """

    database = "original"
    insert_sql = f"""
        INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)
        SELECT 1 + n %% 50, ({_BODY})::jsonb {_NUMBERS}
    """
    incomplete_sql = (
        "SELECT count(*) FROM pggit.alert_delivery_queue WHERE delivery_status <> 'delivered'"
    )
    empty_sql = "TRUNCATE pggit.alert_delivery_queue"
    schema = """
        CREATE SCHEMA pggit;
        CREATE TABLE pggit.alert_delivery_queue (
            delivery_id bigserial PRIMARY KEY, alert_id bigint, webhook_id bigint NOT NULL,
            message_body jsonb NOT NULL, delivery_status text NOT NULL DEFAULT 'pending',
            retry_count integer NOT NULL DEFAULT 0,
            max_retries integer NOT NULL DEFAULT 3, created_at timestamptz NOT NULL DEFAULT now(),
            attempted_at timestamptz, delivered_at timestamptz);
        CREATE INDEX ON pggit.alert_delivery_queue (delivery_id) WHERE delivery_status = 'pending';
        CREATE TABLE pggit.webhook_health_metrics (
            webhook_id bigint PRIMARY KEY, health_status text NOT NULL DEFAULT 'healthy',
            total_deliveries bigint NOT NULL DEFAULT 0,
            successful_deliveries bigint NOT NULL DEFAULT 0,
            failed_deliveries bigint NOT NULL DEFAULT 0,
            consecutive_failures integer NOT NULL DEFAULT 0,
            avg_response_time_ms double precision NOT NULL DEFAULT 0,
            last_check_at timestamptz);
        INSERT INTO pggit.webhook_health_metrics (webhook_id) SELECT generate_series(1, 50)
    """

    def __init__(self, name: str, *, size: int, pause_s: float) -> None:
        super().__init__(name, size=size)
        self._pause_s = pause_s

    def install(self, postgres: Postgres) -> None:
        postgres.create(self.database)
        with postgres.connect(self.database) as connection:
            connection.execute(self.schema.encode())

    def command(self, url: str) -> list[str]:
        return [str(PYTHON), str(PEERS / "original.py"), url, str(self._pause_s)]


class PgQueuer(System):
    """Its tables are `durable`, as by default. The insert is the statement of its `enqueue`,
    without the order of the returned ids.
    """

    database = "pgqueuer"
    insert_sql = f"""
        WITH inserted AS (
            INSERT INTO pgqueuer (priority, entrypoint, payload, execute_after, status)
            SELECT 0, 'deliver', convert_to({_BODY}, 'UTF8'), now(), 'queued' {_NUMBERS}
            RETURNING id, entrypoint, priority)
        INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority)
        SELECT id, 'queued', entrypoint, priority FROM inserted
    """
    incomplete_sql = "SELECT count(*) FROM pgqueuer"
    empty_sql = "TRUNCATE pgqueuer, pgqueuer_log"

    def install(self, postgres: Postgres) -> None:
        postgres.create(self.database)
        _run(postgres, self.database, str(PYTHON), "-m", "pgqueuer", "install")

    def command(self, url: str) -> list[str]:
        return [str(PYTHON), str(PEERS / "pgqueuer_worker.py"), url]


class Procrastinate(System):
    database = "procrastinate"
    insert_sql = f"""
        SELECT procrastinate_defer_jobs_v1(array_agg(
            ROW('webhooks', 'deliver', 0, NULL, NULL, ({_BODY})::jsonb, NULL)
            ::procrastinate_job_to_defer_v1)) {_NUMBERS}
    """
    incomplete_sql = "SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'"
    empty_sql = "TRUNCATE procrastinate_jobs CASCADE"

    def install(self, postgres: Postgres) -> None:
        postgres.create(self.database)
        schema = "from procrastinate.schema import SchemaManager; print(SchemaManager.get_schema())"
        text = _run(postgres, self.database, str(PYTHON), "-c", schema)
        with postgres.connect(self.database) as connection:
            connection.execute(text.encode())

    def command(self, url: str) -> list[str]:
        return [str(PYTHON), str(PEERS / "procrastinate_worker.py"), url]


class Graphile(System):
    """*variant*: `default`, or `tuned` as its documentation on performance says."""

    database = "graphile"
    insert_sql = f"""
        SELECT count(*) FROM graphile_worker.add_jobs((SELECT array_agg(
            ROW('deliver', ({_BODY})::json, NULL, NULL, NULL, NULL, NULL, NULL)
            ::graphile_worker.job_spec) {_NUMBERS}))
    """
    incomplete_sql = "SELECT count(*) FROM graphile_worker._private_jobs"
    empty_sql = "TRUNCATE graphile_worker._private_jobs"

    def __init__(self, name: str, *, size: int, processes: int = 1, variant: str) -> None:
        super().__init__(name, size=size, processes=processes)
        self._variant = variant

    def missing(self) -> str:
        return (
            ""
            if (PEERS / "node_modules").exists()
            else "bench/peers/node_modules (make bench installs it, given node)"
        )

    def install(self, postgres: Postgres) -> None:
        postgres.create(self.database)
        program = str(PEERS / "node_modules" / ".bin" / "graphile-worker")
        _run(postgres, self.database, program, "--schema-only", "--connection", "postgresql://")

    def command(self, url: str) -> list[str]:
        return ["node", str(PEERS / "graphile_worker.js"), url, self._variant]


class Bound(System):
    """Not a real system: the most that this hardware does, with batches and bare sockets only."""

    database = "bound"
    insert_sql = (
        f"INSERT INTO bound.queue (webhook_id, body) SELECT 1 + n %% 50, {_BODY} {_NUMBERS}"
    )
    incomplete_sql = "SELECT count(*) FROM bound.queue WHERE status <> 'delivered'"
    empty_sql = "TRUNCATE bound.queue"
    schema = """
        CREATE SCHEMA bound;
        CREATE TABLE bound.queue (
            id bigserial PRIMARY KEY, webhook_id bigint NOT NULL, body text NOT NULL,
            status text NOT NULL DEFAULT 'pending');
        CREATE INDEX ON bound.queue (id) WHERE status = 'pending'
    """

    def install(self, postgres: Postgres) -> None:
        postgres.create(self.database)
        with postgres.connect(self.database) as connection:
            connection.execute(self.schema.encode())

    def command(self, url: str) -> list[str]:
        return [str(PYTHON), str(PEERS / "bound.py"), url]


def installed(systems: Sequence[System], postgres: Postgres) -> list[System]:
    """Install *systems*, each database once, and return those that can run here. Print the names
    of the others.
    """
    able, made = [], set()
    for system in systems:
        if lacking := system.missing():
            print(f"left out: {system.name}: missing: {lacking}", flush=True)
            continue
        if system.database not in made:
            system.install(postgres)
            made.add(system.database)
        able.append(system)
    return able


def _await_ready(name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while "ready" not in log.read_text().split("\n"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise WebhookdError(f"{name} did not start: {log.read_text()[-2000:]}")
        time.sleep(0.02)


def _run(postgres: Postgres, database: str, *command: str) -> str:
    """Run an installer against *database* and return its output; raise `UnusableError` with the
    end of it if it fails.
    """
    variables = [f"{name}={value}" for name, value in postgres.environment(database).items()]
    done = subprocess.run(
        ["env", *variables, *command], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise UnusableError(f"{' '.join(command)}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
