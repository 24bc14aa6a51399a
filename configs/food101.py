"""Food-101: the settings of GPT-FL (arXiv 2306.02210).

    python -m generate.prompts  --config=configs/food101.py --workdir=runs/food101
    python -m generate.images   --config=configs/food101.py --workdir=runs/food101
    python -m train.downstream  --config=configs/food101.py --workdir=runs/food101
    python -m federated.compare --config=configs/food101.py --workdir=runs/food101
    python -m federated.report  --config=configs/food101.py --workdir=runs/food101

75,750 pictures, 750 a class, as many as there are real ones: of "a food photo of
{name}", at guidances drawn from 1 to 5 (`prompts=ucg`); `prompts=class_prompt` and
`prompts=multi_domain` are the original's other two, at guidance 7.5. ResNet-18 on
pictures of 224 pixels, random resized crops. configs/cifar10.py says the rest, the
variants, and what differs from the original. No published figure is known here.

The data are images/ and meta/, which has the official split, of the released archive,
in $GPTFL_DATA_DIR/food101, or data/food101 where that is not set. Decoded at 224 pixels
they take 15 GB of the disk, from where they are sent to a device that has no room.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "food101/images",
        arg,
        model="resnet18",
        samples="750",
        prompts="ucg",
        source="image_folder",
        options={
            "labels": "food101",
            "train_list": "../meta/train.txt",
            "test_list": "../meta/test.txt",
        },
        image_size=224,
        targets=(0.4, 0.6),
    )
