"""Results from many senders to one recorder: none is lost, and a batch waits for its last one."""

import threading
import time

from tests.support.values import delivery
from webhookd.core.model import GivenBack, Result
from webhookd.worker.results import BATCH, ResultQueue


def result(number: int) -> Result:
    return Result(delivery(delivery_id=number), GivenBack())


def ids(taken: list[Result]) -> list[int]:
    return [one.delivery.delivery_id for one in taken]


def test_the_last_expected_result_ends_the_gathering_at_once() -> None:
    results = ResultQueue()
    results.put(result(1))
    results.put(result(2), last=True)
    assert ids(results.take(within_s=None, gather_s=600.0)) == [1, 2]


def test_a_full_batch_ends_the_gathering_and_the_rest_stays_in_order() -> None:
    results = ResultQueue()
    for number in range(2 * BATCH + 1):
        results.put(result(number))
    assert ids(results.take(within_s=None, gather_s=600.0)) == list(range(BATCH))
    assert ids(results.take(within_s=None, gather_s=600.0)) == list(range(BATCH, 2 * BATCH))
    assert ids(results.take(within_s=None, gather_s=0.0)) == [2 * BATCH]


def test_without_a_last_one_the_gathering_ends_by_itself() -> None:
    results = ResultQueue()
    results.put(result(1))
    assert ids(results.take(within_s=None, gather_s=0.01)) == [1]


def test_without_results_nothing_is_taken() -> None:
    results = ResultQueue()
    assert results.take(within_s=0.01, gather_s=600.0) == []
    assert len(results) == 0


def test_the_last_result_of_a_batch_does_not_cut_the_next_batch_short() -> None:
    results = ResultQueue()
    results.put(result(1), last=True)
    results.take(within_s=None, gather_s=600.0)
    threading.Timer(0.1, lambda: results.put(result(3), last=True)).start()
    results.put(result(2))
    assert ids(results.take(within_s=None, gather_s=600.0)) == [2, 3]


def test_closing_ends_a_wait_and_keeps_the_results() -> None:
    results = ResultQueue()
    threading.Timer(0.05, results.close).start()
    assert results.take(within_s=None, gather_s=600.0) == []
    results.put(result(1))
    ended = [results.ended]
    assert ids(results.take(within_s=None, gather_s=600.0)) == [1]
    ended.append(results.ended)
    assert ended == [False, True]


def test_with_many_senders_no_result_is_lost_or_left_waiting() -> None:
    results, each, senders = ResultQueue(), 3000, 4

    def send(first: int) -> None:
        for number in range(first, first + each):
            results.put(result(number), last=number % 7 == 0)

    threads = [threading.Thread(target=send, args=(number * each,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    deadline = time.monotonic() + 60
    while len(taken) < each * senders and time.monotonic() < deadline:
        taken += ids(results.take(within_s=1.0, gather_s=0.001))
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(each * senders))
