import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.prefetch import ahead


def workers():
    return sum("prefetch" in thread.name for thread in threading.enumerate())


def test_items_come_in_order_and_no_more_than_two_ahead():
    made, asked = [], []

    def items():
        for number in range(5):
            asked.append(number)
            yield number

    coming = ahead(lambda item: made.append(item) or 10 * item, items())
    assert next(coming).result() == 0
    time.sleep(0.05)
    assert asked == made == [0, 1]
    assert [each.result() for each in coming] == [10, 20, 30, 40]
    assert asked == made == list(range(5)) and workers() == 0


def test_what_fails_is_raised_where_it_is_asked_for():
    coming = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(coming).result() == 1
    with pytest.raises(ZeroDivisionError):
        next(coming).result()
    assert workers() == 1
    coming.close()
    assert workers() == 0


def test_the_thread_has_the_settings_of_its_caller():
    with jax.enable_x64(True):
        (found,) = ahead(jnp.asarray, [np.float64(1)])
    assert found.result().dtype == np.float64
