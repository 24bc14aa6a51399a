"""What --dry_run says of federations, and that it is said of the very same programs."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from federated import compare, experiment, plans
from gptfl_jax import evaluation
from gptfl_jax.fl.execution import place

from .conftest import make_config


def test_a_plan_has_the_sizes_of_the_run(setting):
    config = make_config(algorithm="scaffold", local_steps=4, cohort_size=3)
    source, lacking = plans.load(config)
    assert not lacking
    plan = plans.plan(config, source)
    algorithm = experiment.compose(config, source).algorithm.at(0.1)

    variables = setting.learner.init(jax.random.key(0))
    data = place(experiment.deal(config, source.train), None)
    state = algorithm.init(variables, 12)
    cohort = jax.numpy.arange(3, dtype=np.int32)
    _, metrics = algorithm.round(state, data, cohort, jax.random.key(1))
    down, up = (
        float(x) for x in jax.device_get((metrics.bytes_down, metrics.bytes_up))
    )
    sent = dict(plan.facts)["sent"]
    assert sent.startswith(f"{down / 1e3:.3g} kB down and {up / 1e3:.3g} kB up a round")

    resident = {each.name: each.arrays for each in plan.resident}
    same = jax.tree.map(
        lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype),
        (state, data),
        (resident["server state"], resident["clients' examples"]),
    )
    assert jax.tree.all(same)
    steps, tests = plan.work
    assert steps.times == 6 * 3 * 4
    assert tests.times * 16 == 4 * len(source.test.labels)  # rounds 0, 2, 4 and 6
    assert steps.flops > 2 * tests.flops  # the gradient, forward and back
    assert not any(text.startswith("advice") for _, text in plan.facts)


def test_a_test_is_lowered_as_it_is_run(setting):
    variables = setting.learner.init(jax.random.key(0))
    arguments = variables, setting.test_inputs, setting.test_labels
    lowered = evaluation.lower(setting.learner, *arguments, 10, 64)
    counts = lowered.compile()(*arguments)
    expected = evaluation.evaluate_async(setting.learner, *arguments, 10, 64)
    np.testing.assert_array_equal(counts.confusion, expected.confusion)


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_compiles_nothing_that_its_dry_run_has_not(devices, tmp_path, repository):
    cache, workdir = tmp_path / "cache", tmp_path / "work"
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

    def simulate(*more):
        flags = ("--config=digits", f"--workdir={workdir}", f"--cpu_devices={devices}")
        algorithm = "--config.federated.algorithm=scaffold"
        return subprocess.check_output(
            [
                *(sys.executable, "-m", "federated.simulate", *flags, algorithm),
                *("--config.federated.rounds=2", *more),
            ],
            cwd=repository,
            env=os.environ | environment,
            text=True,
        )

    assert "It fits" in simulate("--dry_run")
    assert not workdir.exists()
    planned = {path.name for path in cache.iterdir()}
    simulate()
    new = {path.name for path in cache.iterdir()} - planned
    ours = re.compile("jit_(round_of_all|train_apart|update_apart|_count)")
    assert any(map(ours.match, planned)) and not any(map(ours.match, new))


def test_a_plan_advises_on_clients_of_next_to_nothing():
    config = make_config(num_clients=400, partition_options={"min_examples": 1})
    source, _ = plans.load(config)
    assert len(source.train.labels) == 1415
    facts = plans.plan(config, source).facts
    label, advice = facts[[label for label, _ in facts].index("partition") + 1]
    assert not label
    assert advice.startswith("advice: 1,415 examples are 3.5 for each of 400 clients")


def test_comparison_says_it_once_for_runs_that_share_programs(capsys, tmp_path):
    config = make_config()
    config.compare.methods = {
        "a": {"init": "random"},
        "b": {"init": "synthetic"},
        "c": {"algorithm": "fedprox"},
    }
    config.compare.seeds = (0, 1)
    compare.dry_run(config, tmp_path)
    said = capsys.readouterr().out
    assert "programs 1 of 2, for 4 of 6 runs: a-s0, a-s1, b-s0, b-s1" in said
    assert "programs 2 of 2, for 2 of 6 runs: c-s0, c-s1" in said
    assert not list(tmp_path.iterdir())
