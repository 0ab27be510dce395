"""PostgreSQL is full, or is replaced by its replica; systemd watches webhookd meanwhile."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.storm.postgresql_faults import PATIENT, Proxy, ServiceManager, await_work
from tests.storm.sink import Sink
from tests.storm.storm import Account, Storm
from tests.support.daemon import Daemon, refused, wait_until_ready
from tests.support.postgres import Database, Server, running_server
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(400)]
WATCHDOG_S = 20.0  # twice what is needed, because the machine is busy


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceManager:
    """The service manager that webhookd's watchdog reports to."""
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    return ServiceManager(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 500 MB."""
    disk = Path("/run") / f"webhookd-test-{os.getpid()}"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", str(disk)]
    if (
        os.geteuid() != 0
        or subprocess.run(command, check=False, capture_output=True).returncode != 0
    ):
        disk.rmdir()
        pytest.skip("NO SMALL DISK: only root may mount one, and not in every container")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
    disk.rmdir()


def test_disk_full(small_disk: Path, account: Account, seed: int, manager: ServiceManager) -> None:
    settings = ("max_wal_size=64MB", "min_wal_size=32MB", "wal_recycle=off")
    with running_server(settings=settings, parent=small_disk) as server:
        storm = Storm(account, server.create_migrated(), random.Random(seed))
        with Sink() as sink, Daemon(storm.database.dsn) as daemon:
            storm.register(sink, settings=PATIENT)
            wait_until_ready(storm.database)
            workers = set(daemon.workers())
            ballast = small_disk / "ballast"
            for what in ("tables", "WAL", "tables", "WAL"):
                storm.insert(4000, max_retries=10)
                fill(ballast)
                storm.inject(f"disk full for {what}")
                if what == "WAL":
                    # There is no room for the next segment: the server panics.
                    with suppress(psycopg.OperationalError):
                        storm.database.execute("SELECT pg_switch_wal()")
                eventually(lambda: refuses(storm, ballast), 60.0, what="an INSERT finds no room")
                time.sleep(3.0)
                ballast.unlink()
                if not server.process.alive():  # it had no space for its WAL
                    storm.inject("server gave up")
                    server.restart()
                await_work(storm)
            storm.settle()
            assert "No space left on device" in server.process.log.read_text()
            assert set(daemon.workers()) == workers
            assert manager.longest_silence_s() < WATCHDOG_S
            assert daemon.stop() == 0
            storm.account(sink, refused=refused(daemon))


def refuses(storm: Storm, ballast: Path) -> bool:
    """Insert deliveries, and return whether PostgreSQL refused. Before, *ballast* takes the space
    that a checkpoint has freed.
    """
    fill(ballast)
    try:
        storm.insert(2000, max_retries=10)
    except psycopg.OperationalError:
        return True
    return False


def fill(path: Path) -> None:
    """Let the file *path* grow until its file system is full, to the last page."""
    with path.open("ab", buffering=0) as ballast:
        for size in (2**20, 4096):
            with suppress(OSError):
                while ballast.write(bytes(size)) == size:
                    pass


@pytest.mark.parametrize("way", ["multi-host", "virtual address"])
def test_failover(
    server_storm: Storm, private_server: Server, manager: ServiceManager, way: str
) -> None:
    """A virtual address leads to the replica before it is promoted: read-only for a while."""
    storm, primary = server_storm, private_server.dsn(server_storm.database.name)
    with private_server.replica() as host, Proxy(primary, storm.random) as proxy, Sink() as sink:
        replica = make_conninfo(primary, host=host)
        both = make_conninfo(
            primary,
            host=f"{conninfo_to_dict(primary)['host']},{host}",
            target_session_attrs="read-write",
        )
        with Daemon(both if way == "multi-host" else proxy.dsn) as daemon:
            storm.register(sink, settings=PATIENT)
            wait_until_ready(storm.database)
            workers = set(daemon.workers())
            storm.insert(6000)
            eventually(lambda: storm.finished() > 1000)
            private_server.kill()
            storm.inject("primary killed", kills=1)
            proxy.lead_to(replica)
            proxy.cut_all()
            storm.database = Database(storm.database.name, replica)
            if way == "virtual address":
                storm.inject("read-only")
                time.sleep(5.0)
            storm.database.execute("SELECT pg_promote()")
            storm.inject("failover")
            await_work(storm)
            storm.insert(2000)
            storm.settle()
            assert set(daemon.workers()) == workers
            assert manager.longest_silence_s() < WATCHDOG_S
            assert daemon.stop() == 0
            storm.account(sink, refused=refused(daemon))
