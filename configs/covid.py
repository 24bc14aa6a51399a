"""COVID-19 Radiography, chest X-rays: the settings of GPT-FL (arXiv 2306.02210).

    python -m generate.prompts  --config=configs/covid.py --workdir=runs/covid
    python -m generate.images   --config=configs/covid.py --workdir=runs/covid
    python -m train.downstream  --config=configs/covid.py --workdir=runs/covid
    python -m federated.compare --config=configs/covid.py --workdir=runs/covid
    python -m federated.report  --config=configs/covid.py --workdir=runs/covid

15,153 pictures, six tenths of them NORMAL and two each of Viral Pneumonia and COVID, of
one sentence a class at guidances drawn from 1 to 5. ResNet-18 on pictures of 224
pixels, whole and mirrored at random. configs/cifar10.py says the rest, the variants,
and what differs from the original; besides, its training and test sets overlap, as its
data set ignores the index that it is asked for. No published figure is known here.

The data are the class folders (COVID/, Normal/, Viral Pneumonia/) of the released
archive, in $GPTFL_DATA_DIR/covid, or data/covid where that is not set. Masks are not
read, nor is Lung_Opacity/. A fifth of each class is the test set.
"""

from ml_collections import ConfigDict

from gptfl_jax.configuration import presets

ARGUMENTS = presets.PICTURE_ARGUMENTS


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by the `name=value` pairs of `presets.gptfl_pictures`."""
    return presets.gptfl_pictures(
        "covid",
        arg,
        model="resnet18",
        samples={"NORMAL": 9092, "Viral Pneumonia": 3031, "COVID": 3030},
        prompts="ucg",
        source="image_folder",
        options={
            "labels": "covid_radiography",
            "exclude": ("*/masks/*",),
            "test_fraction": 0.2,
        },
        image_size=224,
        changes={
            "data.channels": 3,  # some X-rays have one
            "train.crop_area": 0.0,
            "federated.crop_area": 0.0,
        },
        targets=(0.8, 0.9),
    )
