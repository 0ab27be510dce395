"""Results from many senders to one recorder: nothing is lost, a batch waits for its last, and
nobody is woken for each.
"""

import threading
import time

from tests.support.values import delivery
from webhookd.core.model import GivenBack, Result
from webhookd.worker.results import BATCH, ResultQueue


def result(number: int) -> Result:
    return Result(delivery(delivery_id=number), GivenBack())


def ids(taken: list[Result]) -> list[int]:
    return [one.delivery.delivery_id for one in taken]


def test_the_last_to_be_expected_ends_the_gathering_at_once() -> None:
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


def test_where_nothing_comes_nothing_is_taken() -> None:
    results = ResultQueue()
    assert results.take(within_s=0.01, gather_s=600.0) == []
    assert len(results) == 0


def test_a_last_one_of_long_ago_does_not_cut_the_next_gathering_short() -> None:
    results = ResultQueue()
    results.put(result(1), last=True)
    results.take(within_s=None, gather_s=600.0)
    threading.Timer(0.1, lambda: results.put(result(3), last=True)).start()
    results.put(result(2))
    assert ids(results.take(within_s=None, gather_s=600.0)) == [2, 3]


def test_closing_wakes_who_waits_and_leaves_what_is_there() -> None:
    results = ResultQueue()
    threading.Timer(0.05, results.close).start()
    assert results.take(within_s=None, gather_s=600.0) == []
    results.put(result(1))
    ended = [results.ended]
    assert ids(results.take(within_s=None, gather_s=600.0)) == [1]
    ended.append(results.ended)
    assert ended == [False, True]


def test_of_many_senders_not_one_result_is_lost_or_left_waiting() -> None:
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
