"""Checks of the fleet: which workers are alive, which answer, and their ports."""

import errno
import http.client
import socket
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from webhookd import __version__
from webhookd.admin import fleet
from webhookd.admin.doctor.findings import Finding, error, note, ok, warning
from webhookd.admin.doctor.installation import Installation
from webhookd.admin.doctor.queue import OVERDUE_S
from webhookd.core.model import WORKER_DEAD_AFTER_S, WORKER_SILENT_AFTER_S

HEALTHZ_S = 1.0


def workers(installation: Installation) -> Iterator[Finding]:
    """Whether workers are alive, which died, and whether any two can be confused."""
    rows = installation.rows("doctor_workers")
    live = [row for row in rows if row["seen_s_ago"] < WORKER_DEAD_AFTER_S]
    for row in rows:
        if row not in live:
            yield warning(
                f"{row['worker_id']} on {row['host']} (pid {row['pid']}) has been silent for "
                f"{row['seen_s_ago']:.0f} s: it died,"
                " or cannot reach the database",
                installation.commands.sql(
                    f"DELETE FROM pggit.workers WHERE incarnation = '{row['incarnation']}'"
                ),
            )
        elif row["seen_s_ago"] > WORKER_SILENT_AFTER_S:
            yield warning(
                f"{row['worker_id']} on {row['host']} (pid {row['pid']}) has been silent for "
                f"{row['seen_s_ago']:.0f} s: it hangs, it died, or it cannot reach the database; "
                f"after {WORKER_DEAD_AFTER_S:.0f} s it counts as dead"
            )
    if not live:
        causes = {row["cause"] for row in installation.rows("doctor_waiting", overdue_s=OVERDUE_S)}
        finding = error if causes & {"due", "blocked", "parked"} else note
        waits = "and deliveries are due" if finding is error else "and nothing is due"
        yield finding(
            f"no worker is alive {waits}: start the service as it is started here, or",
            installation.commands.start(),
        )
        return
    yield from _versions(live)
    yield from _namesakes(installation, live)
    yield ok(f"{len(live)} alive")


def _versions(live: list[dict[str, Any]]) -> Iterator[Finding]:
    others = defaultdict(set)
    for row in live:
        if row["version"] != __version__:
            others[row["version"], row["host"]].add(row["worker_id"])
    for (version, host), names in sorted(others.items()):
        yield warning(
            f"{', '.join(sorted(names))} on {host} run webhookd {version}, this is "
            f"{__version__}: upgrade or restart the older",
            "systemctl restart webhookd",
        )


def _namesakes(installation: Installation, live: list[dict[str, Any]]) -> Iterator[Finding]:
    hosts = defaultdict(set)
    for row in live:
        hosts[row["worker_id"]].add(row["host"])
    shared = {name: sorted(where) for name, where in hosts.items() if len(where) > 1}
    if shared:
        name, where = min(shared.items())
        yield warning(
            f"{' and '.join(where)} both call a worker {name}: their metrics and log lines "
            "cannot be told apart; name each host",
            installation.commands.start(f"--node {where[0]}"),
        )


def options(installation: Installation) -> Iterator[Finding]:
    """Whether all workers deliver by the same options."""
    differ = fleet.disagreement(installation.rows("fleet_options"))
    if differ is not None:
        yield warning(
            f"{differ}; give every host the same options, then reload the service there",
            "systemctl reload webhookd",
        )


def endpoints(installation: Installation) -> Iterator[Finding]:
    """Whether the live workers of this host answer /healthz where they say."""
    live = [
        row
        for row in installation.rows("doctor_workers")
        if row["seen_s_ago"] < WORKER_DEAD_AFTER_S and row["metrics_address"]
    ]
    here = [row for row in live if row["host"] == socket.gethostname()]
    with ThreadPoolExecutor(max_workers=16) as pool:
        answers = list(pool.map(_healthz, [row["metrics_address"] for row in here]))
    for row, answer in zip(here, answers, strict=True):
        if answer is not None:
            yield warning(
                f"{row['worker_id']} (pid {row['pid']}) does not answer on "
                f"{row['metrics_address']}: {answer}",
                f"kill -HUP $(ps -o ppid= -p {row['pid']})",
            )
    elsewhere = sorted({row["host"] for row in live} - {socket.gethostname()})
    if elsewhere:
        yield note(f"workers on other hosts were not asked: {', '.join(elsewhere)}")


def _healthz(address: str) -> str | None:
    """Return what is wrong with the answer, None if it is 200."""
    connection = http.client.HTTPConnection(address, timeout=HEALTHZ_S)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as failure:
        return str(failure) or type(failure).__name__
    finally:
        connection.close()
    return None if status == http.HTTPStatus.OK else f"HTTP {status}"


def ports(installation: Installation) -> Iterator[Finding]:
    """Whether workers could serve metrics where the configuration says, while none is alive on
    this host.
    """
    config = installation.config
    hosts = {
        row["host"]
        for row in installation.rows("doctor_workers")
        if row["seen_s_ago"] < WORKER_DEAD_AFTER_S
    }
    if config.metrics_port == 0 or socket.gethostname() in hosts:
        return
    for port in range(config.metrics_port, config.metrics_port + config.workers):
        failure = _cannot_bind(config.metrics_host, port)
        if failure is not None and failure.errno == errno.EADDRINUSE:
            yield warning(
                f"port {port} of --metrics-host {config.metrics_host} is in use by another "
                "program: webhookd cannot start",
                f"webhookd --metrics-port {port + config.workers}",
            )
        elif failure is not None:
            yield error(
                f"--metrics-host {config.metrics_host} port {port} cannot be served: "
                f"{failure.strerror}"
            )
            return


def _cannot_bind(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(1)
    except OSError as failure:
        return failure
    return None
