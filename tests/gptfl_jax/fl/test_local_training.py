import pytest

from gptfl_jax.fl import local_training


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("size", [1, 3, 5, 20, 32])
def test_buckets_hold_every_rest_with_little_waste(size, count):
    buckets = local_training._buckets(size, count)
    assert buckets[-1] == size and len(buckets) <= count
    for rest in range(1, size):
        assert any(bucket >= rest for bucket in buckets)
