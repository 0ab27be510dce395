"""What the log says of held webhooks: each change once, and not each turn of a mixed fleet."""

import logging

import pytest

from webhookd.postgres.held import HeldChange
from webhookd.worker.held import HeldLog

HELD, OTHER, FREE = (
    HeldChange(1, "http is not allowed"),
    HeldChange(1, "other"),
    HeldChange(1, None),
)


def test_each_change_is_said_once_and_another_reason_is_another_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = HeldLog()
    with caplog.at_level(logging.INFO, logger="webhookd.held"):
        for changes in ([HELD], [FREE], [HELD, FREE], [OTHER], [HeldChange(2, HELD.reason)]):
            log.note(changes)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "webhook held"),
        ("INFO", "webhook released"),
        ("WARNING", "webhook held"),
        ("WARNING", "webhook held"),
    ]
