"""MNIST: the settings of GPT-FL (arXiv 2306.02210) on handwritten digits.

    python -m generate.prompts  --config=configs/mnist.py --workdir=runs/mnist
    python -m generate.images   --config=configs/mnist.py --workdir=runs/mnist
    python -m train.downstream  --config=configs/mnist.py --workdir=runs/mnist
    python -m federated.compare --config=configs/mnist.py --workdir=runs/mnist
    python -m federated.report  --config=configs/mnist.py --workdir=runs/mnist

GPT-FL has no experiment on this set; here it is the quickest to run at full size. One
sentence a digit and kind of stroke, pictures by Stable Diffusion at guidance 7.5, as
many as there are real ones (`ratio=1`); the network of FedAvg's paper (`model=cnn`, or
`lenet`, `mlp`, `logistic_regression`), random crops and no flips. 100 clients, balanced
Dirichlet(0.1); `partition=shards` deals two classes to each, as FedAvg's paper.
configs/cifar10.py says the rest and the variants. No published figure is known here.

The data are read by TensorFlow Datasets (`pip install "gptfl-jax[tfds]"`), without
TensorFlow, from $GPTFL_DATA_DIR/mnist, or data/mnist where that is not set. There they
are prepared, once, by `tfds build mnist --file_format=array_record
--data_dir=data/mnist`.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


CHANGES = {
    "train.weight_decay": 1e-4,
    "train.crop_padding": 2,
    "train.flip": False,
    "federated.crop_padding": 2,
    "federated.flip": False,
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "mnist",
        arg,
        model="cnn",
        samples="1x",
        prompts="multi_domain",
        source="tfds",
        options={"name": "mnist"},
        changes=CHANGES,
        targets=(0.95, 0.98),
    )
