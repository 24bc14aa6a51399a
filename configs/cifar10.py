"""CIFAR-10: the settings of GPT-FL (arXiv 2306.02210).

    python -m generate.prompts  --config=configs/cifar10.py --workdir=runs/cifar10
    python -m generate.images   --config=configs/cifar10.py --workdir=runs/cifar10
    python -m train.downstream  --config=configs/cifar10.py --workdir=runs/cifar10
    python -m federated.compare --config=configs/cifar10.py --workdir=runs/cifar10
    python -m federated.report  --config=configs/cifar10.py --workdir=runs/cifar10

200 sentences a class by a T5; 75,750 pictures by Stable Diffusion 2.1 in 50 steps, the
guidance of each drawn from 1 to 5; VGG-19, trained on them for 200 epochs by AdamW with
weight decay 0.9; then 100 clients, balanced Dirichlet(0.1), 10 a round, 1,000 rounds of
an epoch of SGD. A GPU or TPU is needed. One federation in place of the comparison:

    python -m federated.simulate --workdir=runs/cifar10 \
        --config=configs/cifar10.py:init=synthetic,algorithm=fedopt

Variants: `model=vgg19`, `convnet`, `resnet20`, `resnet18` or `resnet50` (with a workdir
of its own); `samples=3x`, the paper's three synthetic pictures for a real one;
`alpha=0.5`; `init=random`, `synthetic` or `weights`. `weights=vgg19.pth` starts from a
file of torchvision's ImageNet weights or of GPT-FL's own: stage 2, as the original's
VGG-19, and with `init=weights` stage 3.

Published accuracy of VGG-19: 82.2 % by GPT-FL, 78.7 % by the best other method; one
client a round (`cohort_size=1`) still reaches 80.4 %.

What differs from the original: bfloat16 for its float16; a tenth of the synthetic
pictures is held out, to tell the best epoch; all pictures are normalised by ImageNet's
constants, of which the original takes CIFAR's own for real ones; clients are drawn
without replacement and weighted by their examples. `faithful=True` holds nothing out,
draws with replacement and weights alike. The clients' rate is constant: the original's
cosine over 100 steps, begun anew every round, ends at 0.94 of it after a client's 16.

The data are in $GPTFL_DATA_DIR/cifar10, or data/cifar10 where that is not set: the
archive released at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `model=` chooses the classifier; `faithful=True` does more as the original.
    """
    config = presets.gptfl_pictures("cifar10", arg, model="vgg19", samples="7575")
    config.federated.partition_options.min_examples = 32
    config.federated.cutout = 16
    config.report.targets = (0.7, 0.8)
    return config
