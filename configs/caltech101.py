"""Caltech 101: the settings of GPT-FL (arXiv 2306.02210) for its sets of photos.

    python -m generate.prompts  --config=configs/caltech101.py --workdir=runs/caltech101
    python -m generate.images   --config=configs/caltech101.py --workdir=runs/caltech101
    python -m train.downstream  --config=configs/caltech101.py --workdir=runs/caltech101
    python -m federated.compare --config=configs/caltech101.py --workdir=runs/caltech101
    python -m federated.report  --config=configs/caltech101.py --workdir=runs/caltech101

The original writes sentences for this set, and no experiment is published. 200 a class
by a T5, three pictures for each real one (`ratio=3`) at guidances drawn from 1 to
5. ResNet-18 on pictures of 224 pixels, random resized crops. configs/cifar10.py says
the rest, the variants, and what differs from the original.

The data are read by TensorFlow Datasets (`pip install "gptfl-jax[tfds]"`), without
TensorFlow, from $GPTFL_DATA_DIR/caltech101, or data/caltech101 where that is not set.
There they are prepared, once, by `tfds build caltech101 --file_format=array_record
--data_dir=data/caltech101`. Of its 102 classes the background is left out; 30 pictures
a class are the training set.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "caltech101",
        arg,
        model="resnet18",
        samples="3x",
        source="tfds",
        options={"name": "caltech101"},
        image_size=224,
        targets=(0.4, 0.6),
    )
