import json
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from huggingface_hub import constants

import gptfl_jax as gf
from federated import export, starts
from gptfl_jax import artifacts, configuration, description
from gptfl_jax.errors import UserError

from .. import hub_server
from .conftest import make_config


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
        ({"run": "pretrain"}, 2),
        ({"run": "pretrain", "step": "1"}, 1),
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
    out = capsys.readouterr().out
    assert "698 parameters of convnet" in out
    assert f"next: python -m federated.predict --workdir={tmp_path}" in out
    assert sorted(path.name for path in output.iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    # A federation of the same data starts from it.
    config = configuration.default_config("data", "model", "federated")
    config.model.options = {"width": 4, "depth": 1}
    config.federated.init = str(output)
    begun = starts.initial_weights(config, tmp_path, classifier.learner)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, begun), expected)


def test_a_server_that_has_nothing_trained(workdir, tmp_path):
    folder = tmp_path / "federated" / "local"
    shutil.copytree(workdir / "federated" / "fedavg-random-s0", folder)
    artifacts.write_run_record(folder, make_config(algorithm="local_only"))
    with pytest.raises(UserError, match=r"weights of its own \(local_only\).*another"):
        export.run(workdir=str(tmp_path), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_there_is_not(workdir, tmp_path):
    output = str(tmp_path / "out")
    with pytest.raises(UserError, match="holds fedavg-random-s0, pretrain$"):
        export.run(workdir=str(workdir), output=output, run="fedprox")
    with pytest.raises(UserError, match="no such run in .* holds none at all$"):
        export.run(workdir=str(tmp_path), output=output, run="fedprox")
    with pytest.raises(UserError, match="holds no run of train.downstream or fed"):
        export.run(workdir=str(tmp_path), output=output)
    with pytest.raises(UserError, match="--run is missing: .* fedavg-random-s0, pre"):
        export.run(workdir=str(workdir), output=output)
    with pytest.raises(UserError, match="--step=first: takes last, best or a number"):
        export.run(workdir=str(workdir), output=output, step="first")
    with pytest.raises(UserError, match="7"):
        export.run(workdir=str(workdir), output=output, run="pretrain", step="7")
    with pytest.raises(UserError, match="'onnx' is none of safetensors, torch, jax"):
        export.run(workdir=str(workdir), output=output, formats="onnx")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(artifacts.WriteError, match="file"):
        output = str(tmp_path / "file" / "out")
        export.run(workdir=str(workdir), output=output, run="pretrain")


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
    with pytest.raises(UserError, match=f"code of your own.* --model={own}$"):
        export.run(**arguments)
    export.run(**arguments, model=str(own))
    with pytest.raises(UserError, match="code of your own"):
        gf.load_classifier(tmp_path / "o")
    gf.load_classifier(tmp_path / "o", model=str(own))


ALONE = """
import sys
sys.modules.update(dict.fromkeys(("gptfl_jax", "flax", "federated")))  # none of these
import jax, numpy
with open(sys.argv[1], "rb") as file:
    predict = jax.export.deserialize(bytearray(file.read())).call
numpy.save(sys.argv[3], predict(numpy.load(sys.argv[2])))
"""


def test_the_program_runs_without_this_package(workdir, tmp_path):
    output = tmp_path / "out"
    export.run(workdir=str(workdir), output=str(output), run="pretrain", formats="jax")
    assert "jax.export.deserialize" in (output / "README.md").read_text()
    inputs = gf.load("sklearn_digits").test.inputs[:5]
    np.save(tmp_path / "in.npy", inputs)
    files = (output / "classifier.jax_export", tmp_path / "in.npy", tmp_path / "y.npy")
    subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, files)], check=True, cwd=tmp_path
    )
    expected = gf.load_classifier(output).probabilities(inputs)
    np.testing.assert_allclose(np.load(files[2]), expected, atol=1e-5)


def test_the_card_says_what_the_run_was(workdir, tmp_path):
    root = tmp_path / "work"
    folder = root / "federated" / "fedavg-random-s0"
    shutil.copytree(workdir / "federated" / "fedavg-random-s0", folder)
    shutil.copytree(workdir / "pretrain", root / "pretrain")
    config = configuration.default_config("data", "model", "federated", "train")
    config.data.folder = "/home/me/secret"
    config.federated.update({"init": "synthetic", "rounds": 7, "num_clients": 12})
    config.federated.partition = "iid"
    config.seed = 4
    artifacts.write_run_record(folder, config)
    artifacts.write_run_record(root / "pretrain", config)
    metrics = artifacts.Metrics(folder / "metrics.jsonl")
    for step, accuracy in ((0, 0.1), (2, 0.8125), (4, 0.9)):  # the checkpoint is of 3
        metrics.write(step, accuracy=accuracy, macro_f1=0.75, loss=0.5)
    sample = artifacts.Sample("a.png", "1", "one", 0, 2.0, "some/model")
    made = [sample, sample._replace(file="b.png", licence="openrail++")]
    artifacts.append_samples(root / "synthetic", made)
    export.run(workdir=str(root), output=str(tmp_path / "out"), run=folder.name)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "accuracy 81.2 %, macro F1 75.0 %, loss 0.5000, after round 2, of one run "
        "(seed 4)" in card
    )
    for line in (
        "`convnet` (width 4, depth 1) of 698 parameters, for 10 classes: 0, 1, 2",
        "12 clients by the partition `iid`",
        "| `federated.rounds` | `7` |",
        "- 1 by `some/model`, licence of the generator: openrail++",
        "- 1 by `some/model`, licence of the generator: not recorded",
        "pipeline_tag: image-classification",
    ):
        assert line in card, line
    assert "secret" not in card and str(tmp_path) not in card


@pytest.fixture
def hub(monkeypatch):
    server = hub_server.HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.close()


def visibility(request) -> str:
    """Of a repository that is to be made; early clients 1.x say it by a flag."""
    by_flag = "private" if request.get("private") else "public"
    return request.get("visibility", by_flag)


def test_it_is_pushed_when_asked(workdir, tmp_path, hub, capsys):
    output = tmp_path / "out"
    arguments = {"workdir": str(workdir), "run": "pretrain", "output": str(output)}
    export.run(**arguments)
    assert not hub.created and not hub.tokens
    (output / "mine.txt").write_text("not of the export")
    export.run(**arguments, push="you/digits")
    (about,) = hub.created
    assert (about["organization"], about["name"]) == ("you", "digits")
    assert visibility(about) == "private"
    assert hub.files == {
        name: (output / name).read_bytes()
        for name in ("README.md", "config.json", "model.safetensors")
    }
    assert hub.tokens - {""} == {"Bearer hf_of_a_test"}
    assert f"pushed to {hub.url}/you/digits" in capsys.readouterr().out
    export.run(**arguments, push="you/digits", public=True)
    assert visibility(hub.created[-1]) == "public"


def test_what_the_hub_refuses(workdir, tmp_path, hub):
    arguments = {"workdir": str(workdir), "run": "pretrain"}
    arguments["output"] = str(tmp_path / "out")
    hub.status = 401
    with pytest.raises(UserError, match="hf auth login"):
        export.run(**arguments, push="you/digits")
    with pytest.raises(UserError, match="the hub did not take it"):
        export.run(**arguments, push="no/such/name")
    assert (tmp_path / "out" / "model.safetensors").exists()
