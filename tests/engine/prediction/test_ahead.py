"""Reading ahead: order, errors, and that the next item is read meanwhile."""

from threading import Event, current_thread, main_thread

import pytest

from engine.prediction.ahead import ahead


@pytest.mark.parametrize("count", [0, 1, 5])
def test_all_results_come_in_order_from_another_thread(count: int) -> None:
    assert list(ahead(lambda i: (i, current_thread() is main_thread()), range(count))) == [
        (i, False) for i in range(count)
    ]


def test_the_next_item_is_read_while_one_is_used() -> None:
    started = [Event() for _ in range(3)]
    for item in ahead(lambda i: started[i].set() or i, range(3)):
        if item < 2:
            assert started[item + 1].wait(timeout=30)


def test_an_error_comes_where_its_item_would() -> None:
    results = ahead(lambda i: 1 // i, [2, 1, 0, 1])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
