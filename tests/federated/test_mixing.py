"""Synthetic examples in stage 3: among the clients' own, and at the server."""

import numpy as np
import pytest
from PIL import Image

from federated import experiment, plans, simulate
from gptfl_jax import artifacts
from gptfl_jax.artifacts import CheckpointMismatch
from gptfl_jax.errors import ConfigError, UserError

from .conftest import lines_without_seconds, make_config, weights

BOTH = {"synthetic_per_client": 5, "server_steps": 2, "server_batch_size": 8}


@pytest.fixture
def workdir(tmp_path):
    """Twenty pictures of noise of stage 1, two a class."""
    folder, noise = tmp_path / "synthetic", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for number in range(20):
        pixels = noise.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        label = str(number // 2)
        lines.append(artifacts.Sample(f"{number}.png", label, "a", 0, 1.0, "m"))
    artifacts.append_samples(folder, lines)
    return tmp_path


@pytest.mark.parametrize(
    "placement", ["device", pytest.param("stream", marks=pytest.mark.long)]
)
def test_mixed_runs(workdir, setting, placement):
    """One that is cut off and goes on, streamed or not, is the one that is whole."""
    root = workdir / "federated"
    fields = {**BOTH, "eval_every": 9}
    simulate.simulate(make_config(**fields, run="whole", rounds=2), workdir, setting)
    part = make_config(**fields, run="part", rounds=1)
    simulate.simulate(part, workdir, setting)
    rest = make_config(**fields, data_placement=placement, run="part", rounds=2)
    simulate.simulate(rest, workdir, setting)
    whole = weights(root / "whole", setting)
    np.testing.assert_allclose(weights(root / "part", setting), whole, atol=1e-6)
    own = {"synthetic_per_client": 5}
    simulate.simulate(make_config(**own, run="own", rounds=2), workdir, setting)
    assert np.abs(weights(root / "own", setting) - whole).max() > 1e-3
    found = artifacts.read_json(root / "own" / "partition.json", {}, "")["sizes"]
    dealt = experiment.deal(make_config(), setting.source.train)
    np.testing.assert_array_equal(found, np.diff(dealt.offsets) + 5)


def test_no_share_is_the_run_without(workdir, setting):
    mixed = experiment.load_mixed(make_config(**BOTH), workdir, setting.source)
    run = make_config(rounds=2, run="with")
    simulate.simulate(run, workdir, setting._replace(synthetic=mixed))
    simulate.simulate(make_config(rounds=2, run="without"), workdir, setting)
    root = workdir / "federated"
    assert lines_without_seconds(root / "with") == lines_without_seconds(
        root / "without"
    )
    # A run of an earlier version, which had no such fields, goes on.
    simulate.simulate(make_config(rounds=3, run="with"), workdir, setting)


def test_what_mixing_is_refused(workdir, setting):
    config = make_config(**BOTH, rounds=1, run="a")
    simulate.simulate(config, workdir, setting)
    lines = artifacts.read_manifest(workdir / "synthetic")[:-1]
    artifacts.write_manifest(workdir / "synthetic", lines)
    with pytest.raises(CheckpointMismatch, match="synthetic examples"):
        simulate.simulate(config, workdir, setting)
    with pytest.raises(UserError, match=r"python -m generate\.images"):
        experiment.load_mixed(config, workdir / "none", setting.source)
    alone = make_config(algorithm="local_only", server_steps=2)
    with pytest.raises(ConfigError, match=r"server_steps = 2: takes 0 for local_only"):
        experiment.check(alone.federated)
    experiment.check(
        make_config(algorithm="local_only", **{**BOTH, "server_steps": 0}).federated
    )


def test_a_plan_counts_what_is_mixed_in(setting):
    plain = plans.plan(make_config(), setting.source)
    mixed = plans.plan(make_config(**BOTH), setting.source)
    work = {each.name: each for each in mixed.work}
    server = work["server's steps of 8 examples"]
    assert server.times == 6 * 2 and server.flops == plain.work[0].flops / 2
    # 12 clients of 118 examples on average get 5 more: of batches of 16 some 0.3 more.
    assert plain.work[0].times < work["local steps"].times
    assert "1,475 examples" in dict(mixed.facts)["partition"]
