"""Several hosts on one machine: network namespaces behind a bridge, each with a webhookd of its
own. Needs root.

They share PostgreSQL and receivers, which they reach through the network only, at `MAIN` on this
side of the bridge.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from webhookd.demo import local
from webhookd.errors import UnusableError

# The range for tests of network devices (RFC 2544), which no network uses.
NETWORK = "198.18.78.0/24"
MAIN = "198.18.78.1"
_ADDRESSES = "198.18.78.1{number}/24"


@dataclass(frozen=True, slots=True)
class Host:
    """One network namespace; *name* is its webhookd's --node."""

    name: str
    namespace: str

    def webhookd(
        self, dsn: str, *options: str, log: Path | None = None
    ) -> "AbstractContextManager[subprocess.Popen[bytes]]":
        """Run a webhookd here that may deliver to `MAIN`; its output goes to *log*. The process is
        the supervisor.
        """
        allowed = ["--node", self.name, "--allow-network", NETWORK, "--metrics-port", "0"]
        command = local.webhookd(dsn, *allowed, *options)
        return local.program(["ip", "netns", "exec", self.namespace, *command], log)


@contextmanager
def running_hosts(count: int) -> Iterator[Sequence[Host]]:
    """*count* hosts on a bridge; raise `UnusableError` where this machine does not permit them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise UnusableError("network namespaces need root and Debian's iproute2")
    bridge = f"wb{os.getpid()}"
    with ExitStack() as stack:
        try:
            # Without a delay: else a port of the bridge forwards nothing for the first 15 s.
            _ip("link", "add", bridge, "type", "bridge", "forward_delay", "0")
            stack.callback(_ip, "link", "del", bridge)
            _ip("addr", "add", f"{MAIN}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            hosts = [_host(stack, bridge, number) for number in range(1, count + 1)]
        except subprocess.CalledProcessError as error:
            raise UnusableError(
                f"this machine does not permit network namespaces: {error}"
            ) from error
        yield hosts


def _host(stack: ExitStack, bridge: str, number: int) -> Host:
    namespace = f"webhookd{os.getpid()}-{number}"
    ends = f"wo{os.getpid()}{number}", "eth0"
    _ip("netns", "add", namespace)
    stack.callback(_ip, "netns", "del", namespace)
    _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", namespace)
    # Removed at once, while a namespace exists as long as a process is in it.
    stack.callback(_ip, "link", "del", ends[0])
    _ip("link", "set", ends[0], "master", bridge, "up")
    _ip("-n", namespace, "addr", "add", _ADDRESSES.format(number=number), "dev", ends[1])
    _ip("-n", namespace, "link", "set", ends[1], "up")
    _ip("-n", namespace, "link", "set", "lo", "up")
    return Host(f"host{number}", namespace)


def admit_hosts(data: Path) -> None:
    """Let the hosts connect to the PostgreSQL in *data* without a password, from when it has read
    its configuration again.
    """
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {NETWORK} trust\n")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
