"""Three hosts share one PostgreSQL. They reach it and the receivers over the network only."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from tests.support.fleetwide import CAP, OPEN_S, THRESHOLD, Stage
from tests.support.hosts import MAIN, Host, admit_hosts, running_hosts
from tests.support.postgres import Database, running_server
from tests.support.waiting import eventually
from webhookd.errors import UnusableError

pytestmark = [pytest.mark.storm, pytest.mark.timeout(180)]

HOSTS = 3


@pytest.fixture
def hosts() -> Iterator[Sequence[Host]]:
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(running_hosts(HOSTS))
        except UnusableError as error:
            pytest.skip(f"NO NETWORK NAMESPACE: {error}")
        yield hosts


@pytest.fixture
def database(hosts: Sequence[Host]) -> Iterator[Database]:
    """A database that accepts connections from the hosts; its own DSN is for the test."""
    with running_server(settings=(f"listen_addresses={MAIN}",)) as server:
        admit_hosts(server.process.directory / "data")
        database = server.create_migrated()
        database.execute("SELECT pg_reload_conf()")
        yield database


def test_limits_hold_for_all_hosts_together(
    hosts: Sequence[Host], database: Database, tmp_path: Path
) -> None:
    stage = Stage(database, MAIN)
    logs = [tmp_path / f"{host.name}.log" for host in hosts]
    with ExitStack() as stack:
        stack.enter_context(stage.sink)
        stage.prepare()
        for host, log in zip(hosts, logs, strict=True):
            stack.enter_context(
                host.webhookd(make_conninfo(database.dsn, host=MAIN), "--workers", "2", log=log)
            )
        workers = (
            "SELECT count(DISTINCT split_part(worker_id, '/', 1))::int, count(*)::int"
            " FROM pggit.workers WHERE has_room"
        )
        eventually(
            lambda: database.execute(workers) == [(HOSTS, 2 * HOSTS)],
            60.0,
            what="all workers are ready",
        )
        seen = stage.play(seconds=6.0, deliveries=3000)
    assert seen.limited_excess <= 0
    assert seen.limited_share > 0.5  # the limit is used; a busy machine uses less of it
    assert seen.before_open == THRESHOLD
    assert len(seen.probe_gaps_s) >= 3
    assert min(seen.probe_gaps_s) >= OPEN_S
    assert seen.most_at_once == CAP
    assert (seen.missing, seen.repeated) == (0, 0)
    assert set(seen.by_host) == {host.name for host in hosts}
    assert not any("refused by the fence" in log.read_text() for log in logs)
