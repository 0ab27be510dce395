"""What takes several claims."""

import threading

from tests.support.engine import Engine, new_rows
from tests.support.postgres import Database
from tests.support.waiting import eventually


def park_all(database: Database, worker: Engine) -> None:
    """Have *worker* claim until no new row is left: it rests between two batches that it parks."""

    def parked() -> bool:
        assert not worker.claim().deliveries
        return new_rows(database) == 0

    eventually(parked, 60.0)


def run_at_once(claimants: list[Engine], *, claims: int) -> int:
    """Have each of *claimants* claim so often at the same time; return how many rows they took
    altogether.
    """
    start = threading.Barrier(len(claimants))
    taken: list[int] = []

    def claim(claimant: Engine) -> None:
        start.wait(20)
        taken.extend(len(claimant.claim(100).deliveries) for _ in range(claims))

    threads = [threading.Thread(target=claim, args=[claimant]) for claimant in claimants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return sum(taken)
