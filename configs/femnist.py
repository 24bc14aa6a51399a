"""FEMNIST, 62 digits and letters, writers as clients: the settings of GPT-FL.

    python -m generate.prompts  --config=configs/femnist.py --workdir=runs/femnist
    python -m generate.images   --config=configs/femnist.py --workdir=runs/femnist
    python -m train.downstream  --config=configs/femnist.py --workdir=runs/femnist
    python -m federated.compare --config=configs/femnist.py --workdir=runs/femnist
    python -m federated.report  --config=configs/femnist.py --workdir=runs/femnist

GPT-FL (arXiv 2306.02210) has no experiment on this set, whose clients are the people
who wrote it: 3,550 in the files of LEAF, 3,400 in that of TensorFlow Federated. 10 of
them take part in a round. One sentence a class and pen, pictures by Stable Diffusion at
guidance 7.5, 1,000 a class; the network of FedAvg's paper (`model=cnn`, or `lenet`,
`mlp`), random crops and no flips. `writers=350` takes a tenth of the writers.
`partition=dirichlet_balanced,alpha=0.5` deals the pictures otherwise, to
`num_clients=100`. configs/cifar10.py says the rest and the variants. No published
figure is known here.

The data are in $GPTFL_DATA_DIR/femnist, or data/femnist where that is not set: train/
and test/ as LEAF's scripts make them (https://github.com/TalwalkarLab/leaf), its
all_data/, or emnist_all.sqlite, unpacked from
https://storage.googleapis.com/tff-datasets-public/emnist_all.sqlite.lzma.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = {**presets.PICTURE_ARGUMENTS, "writers": "data.options.writers"}


CHANGES = {
    "train.weight_decay": 1e-4,
    "train.crop_padding": 2,
    "train.flip": False,
    "federated.partition": "natural",
    "federated.crop_padding": 2,
    "federated.flip": False,
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `writers=` and those of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "femnist",
        arg,
        model="cnn",
        samples="1000",
        prompts="multi_domain",
        changes=CHANGES,
        arguments=ARGUMENTS,
        targets=(0.7, 0.8),
    )
