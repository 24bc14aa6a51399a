"""CIFAR-10: the settings of GPT-FL (arXiv 2306.02210).

    python -m generate.prompts  --config=configs/cifar10.py --workdir=runs/cifar10
    python -m generate.images   --config=configs/cifar10.py --workdir=runs/cifar10
    python -m train.downstream  --config=configs/cifar10.py --workdir=runs/cifar10
    python -m federated.compare --config=configs/cifar10.py --workdir=runs/cifar10
    python -m federated.report  --config=configs/cifar10.py --workdir=runs/cifar10

200 sentences a class by a T5; 75,750 pictures by Stable Diffusion 2.1 in 50 steps, the
guidance of each drawn from 1 to 5; VGG-19, trained on them for 200 epochs by AdamW with
weight decay 0.9; then 100 clients, balanced Dirichlet(0.1), 10 a round, 1,000 rounds of
an epoch of SGD, whole batches alone. Stage 2 trains on random resized crops, clients on
crops of padded pictures and with Cutout. A GPU or TPU is needed. One federation alone:

    python -m federated.simulate --workdir=runs/cifar10 \
        --config=configs/cifar10.py:init=synthetic,algorithm=fedopt

Variants: `model=vgg19`, `convnet`, `resnet20`, `resnet18`, `resnet50` or another of
`presets.PICTURE_MODELS` (with a workdir of its own); `trainable=head` federates the
last layer alone; `ratio=3` makes the paper's three synthetic pictures for a real one;
`alpha=0.5`; `method=fedopt`, with the original's server step of 1e-6; `init=random`,
`synthetic`, `imagenet`, `imagenet+synthetic`, or a file of weights. ImageNet's are
torchvision's, got from the web at the first start; `weights=vgg19.pth` takes a file in
their place. By `imagenet+synthetic` stage 2 starts from them as well, as the original's
VGG-19 does.

Published accuracy of VGG-19: 82.2 % by GPT-FL, 78.7 % by the best other method; one
client a round (`cohort_size=1`) still reaches 80.4 %.

What differs from the original: bfloat16 for its float16; a tenth of the synthetic
pictures is held out, to tell the best epoch; both stages normalise by CIFAR-10's own
constants, in place of which the original's stage 2 takes ImageNet's; clients are drawn
without replacement and weighted by their examples; and their rate is constant in a
round. `faithful=True` does as the original, of these: it holds nothing out, draws with
replacement, weights alike, lets the rate fall by a cosine over 100 steps, begun anew
every round (it ends at 0.94 after a client's 16), tests ResNet-20 by the statistics of
each batch, and starts stage 2 of VGG-19 from ImageNet's weights while the baseline
starts at random.

The data are in $GPTFL_DATA_DIR/cifar10, or data/cifar10 where that is not set: the
archive released at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "cifar10",
        arg,
        model="vgg19",
        samples="7575",
        changes={
            **presets.CIFAR,
            "federated.partition_options": {"alpha": 0.1, "min_examples": 32},
            "federated.cutout": 16,
        },
        targets=(0.7, 0.8),
    )
