"""CIFAR-100: the settings of GPT-FL (arXiv 2306.02210).

    python -m generate.prompts  --config=configs/cifar100.py --workdir=runs/cifar100
    python -m generate.images   --config=configs/cifar100.py --workdir=runs/cifar100
    python -m train.downstream  --config=configs/cifar100.py --workdir=runs/cifar100
    python -m federated.compare --config=configs/cifar100.py --workdir=runs/cifar100
    python -m federated.report  --config=configs/cifar100.py --workdir=runs/cifar100

As configs/cifar10.py, with its variants, but for three things: 758 pictures a class
make 75,800; a client has 5 examples at least, not 32; no Cutout.

Published accuracy of VGG-19: 47.8 % by GPT-FL, 35.8 % by the best other method. What
differs from the original, configs/cifar10.py says, but for constants: these pictures
are normalised by ImageNet's, as there.

The data are in $GPTFL_DATA_DIR/cifar100, or data/cifar100 where that is not set: the
archive released at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "cifar100",
        arg,
        model="vgg19",
        samples="758",
        changes=presets.CIFAR,
        targets=(0.35, 0.45),
    )
