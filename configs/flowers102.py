"""Oxford Flowers102: the settings of GPT-FL (arXiv 2306.02210).

    python -m generate.prompts  --config=configs/flowers102.py --workdir=runs/flowers102
    python -m generate.images   --config=configs/flowers102.py --workdir=runs/flowers102
    python -m train.downstream  --config=configs/flowers102.py --workdir=runs/flowers102
    python -m federated.compare --config=configs/flowers102.py --workdir=runs/flowers102
    python -m federated.report  --config=configs/flowers102.py --workdir=runs/flowers102

75,786 pictures, 743 a class, of "a flower photo of {name}", at guidances drawn from 1
to 5; `ratio=3` makes three for each of the 1,020 real ones, the paper's main setting.
Pictures of 224 pixels, random resized crops. configs/cifar10.py says the rest, the
variants, and what differs from the original.

Published accuracy of VGG-19: 70.6 % by GPT-FL, 33.2 % by the best other method.

The data are read by TensorFlow Datasets (`pip install "gptfl-jax[tfds]"`), without
TensorFlow, from $GPTFL_DATA_DIR/flowers102, or data/flowers102 where that is not set.
There they are prepared, once, by `tfds build oxford_flowers102
--file_format=array_record --data_dir=data/flowers102`.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "flowers102",
        arg,
        model="vgg19",
        samples="743",
        prompts="ucg",
        source="tfds",
        options={"name": "oxford_flowers102"},
        image_size=224,
        targets=(0.5, 0.7),
    )
