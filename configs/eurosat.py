"""EuroSAT, land use from satellites: the settings of GPT-FL (arXiv 2306.02210).

    python -m generate.prompts  --config=configs/eurosat.py --workdir=runs/eurosat
    python -m generate.images   --config=configs/eurosat.py --workdir=runs/eurosat
    python -m train.downstream  --config=configs/eurosat.py --workdir=runs/eurosat
    python -m federated.compare --config=configs/eurosat.py --workdir=runs/eurosat
    python -m federated.report  --config=configs/eurosat.py --workdir=runs/eurosat

Sentences of a T5 around the class names with an article ("a Highway or Road"); how many
pictures the original makes of them is not published, here it is three for each real one
(`ratio=3`). AdamW with weight decay 0.3. ResNet-18 on pictures of 64 pixels, enlarged
to 224: turned by up to 90 degrees, and crops of seven eighths of the side or more.
configs/cifar10.py says the rest, the variants, and what differs from the original,
whose crops, of training and of test pictures, all have seven eighths of the side, and
which does not normalise them. No published figure is known here.

The data are the class folders (AnnualCrop/, Forest/, ...) of the released RGB archive,
in $GPTFL_DATA_DIR/eurosat, or data/eurosat where that is not set. A fifth of each class
is the test set.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS
CHANGES = {
    f"{section}.{field}": value
    for section in ("train", "federated")
    for field, value in {
        "rotate": 90.0,
        "crop_area": (7 / 8) ** 2,
        "crop_aspect": 1.0,
    }.items()
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "eurosat",
        arg,
        model="resnet18",
        samples="3x",
        source="image_folder",
        options={"labels": "eurosat", "test_fraction": 0.2},
        image_size=224,
        changes={"train.weight_decay": 0.3, **CHANGES},
        targets=(0.8, 0.9),
    )
