"""The programs on the config files of pictures, with toy data of the released form."""

import json
import pickle

import numpy as np
import pytest

from federated import simulate
from generate import prompts
from gptfl_jax import configuration, launch
from train import downstream

# Two examples a class and file.
RELEASED = {
    "cifar10": (
        "cifar-10-batches-py",
        ("batches.meta", "label_names", 10),
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
        "labels",
    ),
    "cifar100": (
        "cifar-100-python",
        ("meta", "fine_label_names", 100),
        ["train", "test"],
        "fine_labels",
    ),
}


def write_released(name, root):
    folder, (meta, names_key, count), files, labels_key = RELEASED[name]
    (root / folder).mkdir()
    names = {names_key: [f"class {i}" for i in range(count)]}
    (root / folder / meta).write_bytes(pickle.dumps(names))
    for seed, file in enumerate(files):
        labels = np.arange(count).repeat(2)
        noise = np.random.default_rng(seed).integers(0, 99, (len(labels), 3072))
        pixels = (noise + labels[:, None]).astype(np.uint8)
        content = {"data": pixels, labels_key: labels.tolist()}
        (root / folder / file).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    "name", ["cifar10", pytest.param("cifar100", marks=pytest.mark.long)]
)
def test_stages_run_at_toy_size(name, tmp_path):
    write_released(name, tmp_path)
    arguments = "model=convnet,data=real,prompts=ucg,epochs=1,rounds=1,init=synthetic"
    config = launch.read_config(f"{name}:{arguments},num_clients=4,cohort_size=2")
    config.data.folder = str(tmp_path)
    config.model.options = {"width": 4, "depth": 1}
    config.federated.partition_options.min_examples = 3
    config.federated.eval_every = 1
    configuration.validate(config)
    workdir = tmp_path / "run"

    prompts.run(config, workdir)
    made = json.loads((workdir / "prompts.json").read_text())
    assert made["made"]["data_set"] == name
    downstream.run(config, workdir)
    simulate.run(config, workdir)
    folder = workdir / "federated" / "fedavg-synthetic-s0"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert len(lines) == 2 and last["step"] == 1 and np.isfinite(last["loss"])
