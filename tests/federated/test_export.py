import json

import chex
import jax
import numpy as np
import pytest

import gptfl_jax as gf
from federated import starts
from gptfl_jax import artifacts, configuration, description
from gptfl_jax.errors import UserError
from train import export


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What runs of both stages have left: checkpoints of digits' weights."""
    root = tmp_path_factory.mktemp("workdir")
    about = description.describe("convnet", {"width": 4}, gf.load("sklearn_digits"))
    about = about._replace(options={"width": 4, "depth": 1})
    learner = description.make_learner(about)
    for folder, steps in (("pretrain", (1, 2)), ("federated/fedavg-random-s0", (3,))):
        about.save(root / folder)
        with artifacts.Checkpoints(root / folder / "checkpoints") as checkpoints:
            for step in steps:
                variables = learner.init(jax.random.key(step))
                checkpoints.save(step, {"variables": variables})
    return root


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        ({}, 2),
        ({"step": "1"}, 1),
        ({"run": "fedavg-random-s0"}, 3),
        ({"run": "federated/fedavg-random-s0", "step": "best"}, 3),
    ],
)
def test_a_run_is_exported(workdir, tmp_path, capsys, arguments, step):
    output = tmp_path / "out"
    export.run(workdir=str(workdir), output=str(output), **arguments)
    classifier = gf.load_classifier(output)
    expected = jax.device_get(classifier.learner.init(jax.random.key(step)))
    chex.assert_trees_all_equal(jax.device_get(classifier.variables), expected)
    assert classifier.class_names == tuple("0123456789")
    assert "698 parameters of convnet" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        *("config.json", "model.safetensors")
    ]
    # A federation of the same data starts from it.
    config = configuration.default_config("data", "model", "federated")
    config.model.options = {"width": 4, "depth": 1}
    config.federated.init = str(output)
    begun = starts.initial_weights(config, tmp_path, classifier.learner)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, begun), expected)


def test_what_there_is_not(workdir, tmp_path):
    output = str(tmp_path / "out")
    with pytest.raises(UserError, match="holds fedavg-random-s0, pretrain$"):
        export.run(workdir=str(workdir), output=output, run="fedprox")
    with pytest.raises(UserError, match="no such run in .* holds none at all$"):
        export.run(workdir=str(tmp_path), output=output)
    with pytest.raises(UserError, match="--step=first: takes last, best or a number"):
        export.run(workdir=str(workdir), output=output, step="first")
    with pytest.raises(UserError, match="7"):
        export.run(workdir=str(workdir), output=output, step="7")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(artifacts.WriteError, match="file"):
        export.run(workdir=str(workdir), output=str(tmp_path / "file" / "out"))


def test_a_model_of_ones_own_is_run_when_the_user_says_so(workdir, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from gptfl_jax.models.convnet import Model as Base\n")
    own.write_text(own.read_text() + "class Model(Base):\n    pass\n")
    run = tmp_path / "federated" / "mine"
    run.mkdir(parents=True)
    source = workdir / "pretrain"
    (run / "checkpoints").symlink_to(source / "checkpoints")
    content = json.loads((source / "classifier.json").read_text())
    content["model"]["name"] = str(own)
    artifacts.write_json(run / "classifier.json", content)
    arguments = {"workdir": str(tmp_path), "run": "mine", "output": str(tmp_path / "o")}
    with pytest.raises(UserError, match="code of your own"):
        export.run(**arguments)
    export.run(**arguments, model=str(own))
    with pytest.raises(UserError, match="code of your own"):
        gf.load_classifier(tmp_path / "o")
    gf.load_classifier(tmp_path / "o", model=str(own))
