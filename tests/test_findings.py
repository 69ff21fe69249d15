from __future__ import annotations

import threading

import numpy as np

from niseg_gpu.findings import collect, count, own_part


def test_counts_add_up_and_only_inside_the_blocks_own_part() -> None:
    with collect((slice(1, 3), slice(0, 2))) as tally:
        count("ones", np.ones((4, 5, 6), bool))
        count("ones", np.ones((5, 6), int), times=10)
    assert tally["ones"] == 4 * 2 * 2 + 10 * 2 * 2


def test_outside_nobody_counts() -> None:
    count("nothing", np.ones((2, 2)))
    with collect() as tally:
        pass
    assert tally == {}


def test_what_is_counted_already_is_added_as_it_is() -> None:
    assert own_part(3) == (slice(None),) * 3
    with collect((slice(1, 3), slice(0, 2))) as tally:
        assert own_part(3) == (slice(None), slice(1, 3), slice(0, 2))
        assert own_part(2) == (slice(1, 3), slice(0, 2))
        count("ones", np.int64(5))
        count("ones", 4, times=10)
    assert tally["ones"] == 45


def test_threads_do_not_share_a_tally() -> None:
    tallies = []

    def work(n: int) -> None:
        with collect() as tally:
            count("n", np.ones(n))
        tallies.append(int(tally["n"]))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tallies) == [1, 2, 3]


def test_numbers_are_added_as_they_are() -> None:
    assert own_part(2) == (slice(None), slice(None))
    count("ones", 5)
    with collect((slice(1, 3), slice(0, 2))) as tally:
        count("ones", np.ones((5, 6), bool))
        count("ones", np.uint64(4), times=2)
        assert own_part(3) == (slice(None), slice(1, 3), slice(0, 2))
    assert tally["ones"] == 4 + 8
