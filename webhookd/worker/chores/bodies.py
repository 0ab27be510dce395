"""Has the bodies of rows in quarantine measured that nothing has measured yet."""

from typing import ClassVar

from webhookd.postgres import bodies
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool
from webhookd.worker.poison import BodyMeasurer

AT_ONCE = 100


class QuarantineMeasurer:
    """No claim of other rows meets a row in quarantine, so that none reports it."""

    name: ClassVar[str] = "measure_bodies"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True

    def __init__(self, measurer: BodyMeasurer) -> None:
        self._measurer = measurer

    def run(self, pool: Pool) -> None:
        with pool.connection() as connection:
            self._measurer.add(bodies.unmeasured_in_quarantine(connection, limit=AT_ONCE))
