import pytest

from gptfl_jax import convolution
from gptfl_jax.fl import algorithms, local_training

from .rounds import EXECUTIONS, LOCAL, run


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("size", [1, 3, 5, 20, 32])
def test_buckets_hold_every_rest_with_little_waste(size, count):
    buckets = local_training._buckets(size, count)
    assert buckets[-1] == size and len(buckets) <= count
    for rest in range(1, size):
        assert any(bucket >= rest for bucket in buckets)


@pytest.mark.parametrize("options", EXECUTIONS)
def test_lanes_are_traced_as_clients_side_by_side(problem, options):
    """Where `gptfl_jax.convolution` takes other forms on a GPU."""
    seen = set()

    def loss(*arguments):
        seen.add(convolution.places.is_side_by_side.value)
        return problem.learner.loss(*arguments)

    learner = problem.learner._replace(loss=loss)
    run(problem, algorithms.fedavg(learner, LOCAL, **options), rounds=1)
    assert (True in seen) == (options["execution"] == "vmap")


@pytest.mark.parametrize("options", EXECUTIONS[1:])
def test_large_networks_are_not(problem, monkeypatch, options):
    seen = set()

    def loss(*arguments):
        seen.add(convolution.places.is_side_by_side.value)
        return problem.learner.loss(*arguments)

    monkeypatch.setattr(local_training, "_SMALL_BYTES", 10)
    learner = problem.learner._replace(loss=loss)
    run(problem, algorithms.fedavg(learner, LOCAL, **options), rounds=1)
    assert seen == {False}
