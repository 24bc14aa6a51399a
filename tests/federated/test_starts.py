import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from federated import experiment, simulate, starts
from gptfl_jax import (
    artifacts,
    configuration,
    description,
    models,
    training,
    web_files,
)
from gptfl_jax.artifacts import CheckpointMismatch
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.fl import rounds
from gptfl_jax.models import convnet

from .conftest import lines_without_seconds, make_config


def test_start_from_stage_2(workdir, setting):
    config = make_config(init="synthetic", rounds=1)
    simulate.simulate(config, workdir, setting)
    (workdir / "other").symlink_to(workdir / "pretrain")
    named = make_config(init="other")
    assert starts.checkpoints(named, workdir) == workdir / "other" / "checkpoints"
    by_path = make_config(init=str(workdir / "pretrain"), rounds=1, run="by-path")
    simulate.simulate(by_path, workdir, setting)
    root = workdir / "federated"
    synthetic = lines_without_seconds(root / "fedavg-synthetic-s0")
    assert synthetic == lines_without_seconds(root / "by-path")
    # Weights of a federated run are a start as well.
    onward = make_config(init=str(root / "by-path"), rounds=1, run="onward")
    simulate.simulate(onward, workdir, setting)
    first, last = (
        artifacts.read_metrics(root / "onward" / "metrics.jsonl")[0],
        artifacts.read_metrics(root / "by-path" / "metrics.jsonl")[-1],
    )
    assert first["accuracy"] == last["accuracy"] and first["loss"] == last["loss"]


def test_a_federation_starts_from_released_weights(tmp_path, setting):
    released = jax.tree.map(np.asarray, setting.learner.init(jax.random.key(7)))
    torch = models.released_weights("convnet", released)
    file = tmp_path / "released.safetensors"
    save_file(torch, file)
    config = make_config(rounds=1)
    config.model.weights = str(file)
    key = rounds.key_of(config.seed, rounds.INITIAL_WEIGHTS)

    def start():
        return starts.initial_weights(config, tmp_path, setting.learner)

    chex.assert_trees_all_equal(start(), setting.learner.init(key))
    config.federated.init = "weights"
    configuration.validate(config)
    chex.assert_trees_all_equal(start(), released)
    # Without a head, and with one of other classes, the head is random.
    for rows in (0, 3):
        heads = {
            f"classifier.{leaf}": torch[f"classifier.{leaf}"][:rows]
            for leaf in ("weight", "bias")
        }
        body = {k: v for k, v in torch.items() if k not in heads}
        save_file({**body, **heads} if rows else body, file)
        begun = start()["params"]
        chex.assert_trees_all_equal(begun["conv0"], released["params"]["conv0"])
        random = setting.learner.init(key)["params"]["classifier"]
        chex.assert_trees_all_equal(begun["classifier"], random)
    simulate.simulate(config, tmp_path, setting)
    assert (tmp_path / "federated" / "fedavg-weights-s0").is_dir()
    save_file({k: v for k, v in torch.items() if k != "features.0.bias"}, file)
    with pytest.raises(UserError, match=r"no weights conv0\.bias.*config\.model"):
        start()
    config.model.weights = ""
    with pytest.raises(ConfigError, match=r"init = 'weights': takes another while"):
        configuration.validate(config)


def test_missing_stage_2_names_its_command(tmp_path, setting):
    config = make_config(init="synthetic")
    with pytest.raises(UserError, match=r"python -m train\.downstream .*--workdir="):
        simulate.simulate(config, tmp_path, setting)
    config = make_config(init=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere.* is missing.*train\.downstream"):
        simulate.simulate(config, tmp_path, setting)


def test_initial_weights_of_another_model_are_refused(tmp_path, setting):
    with artifacts.Checkpoints(tmp_path / "pretrain" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": {"params": {"other": np.zeros(3)}}})
    config = make_config(init="synthetic")
    with pytest.raises(CheckpointMismatch, match="is of another model"):
        simulate.simulate(config, tmp_path, setting)


def test_a_federation_starts_from_what_init_names(
    tmp_path, setting, web_server, monkeypatch
):
    monkeypatch.setenv("GPTFL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(web_files, "_FIRST_PAUSE_S", 0.0)
    released = jax.tree.map(np.asarray, setting.learner.init(jax.random.key(7)))
    folder = tmp_path / "vgg"
    folder.mkdir()
    file = folder / "model.safetensors"
    save_file(models.released_weights("convnet", released), file)
    address = f"{web_server.url}/some/w.safetensors"
    web_server.files["/some/w.safetensors"] = file.read_bytes()
    monkeypatch.setattr(convnet, "IMAGENET", {address: {"depth": 1}}, raising=False)
    for init in (str(file), str(folder), address, "imagenet"):
        config = make_config(init=init)
        begun = starts.initial_weights(config, tmp_path, setting.learner)
        chex.assert_trees_all_equal(begun, released)
        assert starts.checkpoints(config, tmp_path) is None
    assert len(web_server.requests) == 1
    assert experiment.run_name(make_config(init=address)) == "fedavg-w-s0"
    for init in ("https://127.0.0.1:1/none", str(tmp_path / "none.pth")):
        with pytest.raises(UserError, match="none.*(cannot be downloaded|no such)"):
            simulate.simulate(make_config(init=init), tmp_path)
    config = make_config(init="imagenet")
    config.model.options.depth = 2
    with pytest.raises(UserError, match="none for convnet with these.*for depth=1$"):
        starts.released_file(config)
    # A folder of checkpoints is one, whatever it is called.
    (tmp_path / "w.bin" / "checkpoints").mkdir(parents=True)
    run = make_config(init=str(tmp_path / "w.bin"))
    assert starts.released_file(run) is None
    assert starts.checkpoints(run, tmp_path) == tmp_path / "w.bin" / "checkpoints"


def test_a_federation_starts_from_procedural_weights(tmp_path, setting):
    """All but the last layer, which is of other classes."""
    model = models.create("convnet", 7, **make_config().model.options)
    source = setting.source
    names = tuple(f"rule {i}" for i in range(7))
    train = source.train._replace(class_names=names)
    learner = training.make_learner(model, training.example_of(train.inputs))
    trained = learner.init(jax.random.key(3))
    folder = tmp_path / "procedural"
    with artifacts.Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": trained})
    options = make_config().model.options.to_dict()
    about = description.describe("convnet", options, source._replace(train=train))
    about.save(folder)
    config = make_config(init="procedural")
    begun = starts.initial_weights(config, tmp_path, setting.learner)["params"]
    chex.assert_trees_all_equal(begun["conv0"], trained["params"]["conv0"])
    key = rounds.key_of(config.seed, rounds.INITIAL_WEIGHTS)
    random = setting.learner.init(key)["params"]["classifier"]
    chex.assert_trees_all_equal(begun["classifier"], random)
    assert experiment.run_name(config) == "fedavg-procedural-s0"


def test_a_federation_starts_from_code_of_ones_own(tmp_path, setting):
    file = tmp_path / "halved.py"
    file.write_text(
        "import jax\n\n"
        "def halved(variables):\n"
        "    return jax.tree.map(lambda x: x / 2, variables)\n\n"
        "def less(variables):\n"
        "    return {'params': {}}\n"
    )
    config = make_config(init=f"{file}:halved")
    key = rounds.key_of(config.seed, rounds.INITIAL_WEIGHTS)
    expected = jax.tree.map(lambda x: x / 2, setting.learner.init(key))
    begun = starts.initial_weights(config, tmp_path, setting.learner)
    chex.assert_trees_all_equal(begun, expected)
    assert experiment.run_name(config) == "fedavg-halved-s0"
    config = make_config(init=f"{file}:less")
    with pytest.raises(ConfigError, match="its weights are not of the model"):
        starts.initial_weights(config, tmp_path, setting.learner)


def test_what_a_start_has_cost(tmp_path):
    """Its own and that of its pictures; of what is released nothing is known."""

    def cost(**fields):
        return tuple(starts.operations(make_config(**fields), tmp_path).values())

    def record(folder, flops):
        artifacts.write_json(tmp_path / folder / "run.json", {"flops": flops})

    assert cost() == (0, 0)
    assert cost(init="synthetic") == (None, None)
    record("pretrain", {"generation": 7.0, "stage 2": 5.0})
    record("procedural", {"generation": 0.0, "stage 2": 4.0})
    assert cost(init="synthetic") == (7, 5)
    assert cost(init=str(tmp_path / "pretrain")) == (7, 5)
    assert cost(init="procedural") == (0, 4)
    assert cost(server_steps=1) == (None, 0)
    record("synthetic", {"generation": 7.0})
    assert cost(synthetic_per_client=1) == (7, 0)
    assert cost(init="procedural", server_steps=1) == (7, 4)
    # What is made once counts once.
    assert cost(init="synthetic", server_steps=1) == (7, 5)
    assert cost(init="imagenet") == (None, None)
    record("pretrain", {"generation": 7.0, "stage 2": 5.0, "released weights": None})
    assert cost(init="synthetic") == (7, None)


def test_clients_alone_are_tested_together(setting):
    """Counts of the models of two clients, of one that is all zeros."""
    algorithm = experiment.make_algorithm(
        make_config(algorithm="local_only").federated, setting.learner, None
    )
    alone = setting._replace(algorithm=algorithm)
    variables = setting.learner.init(jax.random.key(1))
    state = algorithm.init(variables, 12)
    config = make_config()
    of_server = simulate._test(config, alone, state)
    zeros = jax.tree.map(np.zeros_like, variables)
    rows = {3: (np.True_, variables), 8: (np.True_, zeros)}
    rows[9] = (np.False_, zeros)  # was in a cohort, and failed to report
    state = state._replace(own=state.own._replace(rows=rows))
    both = simulate._test(config, alone, state)
    of_zeros = simulate._test(config, setting, state._replace(variables=zeros, own=()))
    np.testing.assert_array_equal(
        both.confusion, of_server.confusion + of_zeros.confusion
    )
    assert both.confusion.sum() == 2 * 382
