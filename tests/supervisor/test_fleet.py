"""What the fleet does without a process."""

import selectors
import socket
from collections.abc import Iterator

import pytest

from webhookd.config.options import Config
from webhookd.core.restart import Phase, Restart
from webhookd.errors import UnusableError
from webhookd.lifeline import Lifeline
from webhookd.supervisor.fleet import Fleet


def never_forked(config: Config, lifeline: Lifeline) -> int:
    raise AssertionError("nothing is started here")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with selectors.DefaultSelector() as selector:
        fleet = Fleet(Config(metrics_port=0), never_forked, selector=selector, detach=lambda: None)
        yield fleet
        fleet.close()


def test_a_new_configuration_ends_the_wait_of_vacant_slots(fleet: Fleet) -> None:
    fleet.add_slot(1, now=100.0)
    fleet.slots[1].restart = Restart(Phase.WAITING, since=130.0, heard=100.0, failures=9)
    fleet.set_config(Config(), now=101.0)
    assert list(fleet.timers(with_starts=True)) == [101.0]
    assert fleet.slots[1].restart.failures == 0


def test_a_slot_s_port_listens_from_the_start_and_is_closed_with_it(fleet: Fleet) -> None:
    fleet.add_slot(1, now=0.0)
    address = fleet.slots[1].metrics_socket.getsockname()
    with socket.create_connection(address, timeout=10):
        pass
    fleet.remove_slot(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=10)


def test_slot_i_takes_the_metrics_port_plus_i_minus_1() -> None:
    with selectors.DefaultSelector() as selector, socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        fleet = Fleet(
            Config(metrics_port=taken - 4), never_forked, selector=selector, detach=lambda: None
        )
        with pytest.raises(UnusableError, match=rf"port {taken} .*--metrics-port"):
            fleet.add_slot(5, now=0.0)


@pytest.mark.parametrize(
    ("host", "port"), [("no-such-host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 65536)]
)
def test_an_address_that_cannot_be_listened_on_is_named(host: str, port: int) -> None:
    config = Config(metrics_host=host, metrics_port=port)
    with selectors.DefaultSelector() as selector:
        fleet = Fleet(config, never_forked, selector=selector, detach=lambda: None)
        with pytest.raises(UnusableError, match=f"{host} port {port}"):
            fleet.add_slot(1, now=0.0)
