"""Fixtures of the monitoring tests."""

from collections.abc import Iterator

import pytest

from tests.monitoring import stack
from tests.support.postgres import Server


@pytest.fixture(scope="session")
def busy_stack(
    embedded_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[stack.Stack]:
    """Three workers under mixed load, with Prometheus and Alertmanager; see
    `tests.monitoring.stack`. Do not change it: a test that pauses a webhook or stops a worker must
    start its own fleet.
    """
    with stack.busy_stack(embedded_server, tmp_path_factory.mktemp("monitoring")) as busy:
        yield busy
