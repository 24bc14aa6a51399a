"""Augmentation, of `config.train` and `config.federated`."""

from collections.abc import Mapping
from typing import Any

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field

AUGMENTATION: dict[str, dict[str, Field]] = {
    "pictures": {
        "crop_padding": Field(
            0, rules.whole(0), "random crops after padding by this many pixels; 0: none"
        ),
        "flip": Field(False, rules.FLAG, "random horizontal flips"),
        "cutout": Field(
            0,
            rules.whole(0),
            "side in pixels of a random square set to the mean; 0: none",
        ),
        "shift": Field(
            0.0,
            rules.number(least=0, most=1),
            "random moves up to this share of the side, along each axis",
        ),
        "scale": Field(
            0.0,
            rules.number(least=0, below=1),
            "random factor on the size, from 1 - scale to 1 + scale",
        ),
        "rotate": Field(
            0.0,
            rules.number(least=0, most=180),
            "random rotations up to this many degrees",
        ),
        "shear": Field(
            0.0,
            rules.number(least=0, below=90),
            "random horizontal slants up to this many degrees",
        ),
        "crop_area": Field(
            0.0,
            rules.number(least=0, below=1),
            "random crops of at least this share of the area, resized to the whole "
            "(0.08 is usual at 224 pixels); 0: none",
        ),
        "crop_aspect": Field(
            4 / 3,
            rules.number(least=1),
            "largest ratio of the sides of such a crop, either way",
        ),
        "brightness": Field(
            0.0,
            rules.number(least=0),
            "random factor on the colours, from 1 - brightness to 1 + brightness",
        ),
        "contrast": Field(
            0.0,
            rules.number(least=0),
            "random factor, likewise, on their distance from the mean grey",
        ),
        "saturation": Field(
            0.0,
            rules.number(least=0),
            "random factor, likewise, on their distance from the pixel's grey",
        ),
        "hue": Field(
            0.0,
            rules.number(least=0, most=0.5),
            "random turns of the hue up to this share of the colour circle",
        ),
    },
    "sounds": {
        "tempo": Field(
            0.0,
            rules.number(least=0),
            "random factor on a clip's length, from exp(-tempo) to exp(tempo)",
        ),
        "warp": Field(
            0.0,
            rules.number(least=0),
            "random factor on the frequency in bands, from exp(-warp) to exp(warp)",
        ),
        "time_shift": Field(0, rules.whole(0), "random moves up to this many frames"),
        "time_masks": Field(
            0, rules.whole(0), "random stretches of time that are blanked (SpecAugment)"
        ),
        "time_mask_width": Field(0, rules.whole(0), "largest width of one in frames"),
        "time_mask_share": Field(
            0.2,
            rules.number(above=0, most=1),
            "largest width of one as a share of the clip",
        ),
        "frequency_masks": Field(
            0, rules.whole(0), "random ranges of bands that are blanked (SpecAugment)"
        ),
        "frequency_mask_width": Field(
            0, rules.whole(0), "largest width of one in bands"
        ),
    },
}

# Fields that came later: checkpoints of versions before are of runs without them.
_LATER = {
    name: AUGMENTATION["pictures"][name].default
    for name in (
        *("crop_area", "crop_aspect"),
        *("brightness", "contrast", "saturation", "hue"),
    )
} | {
    "trainable": "all",
    "synthetic_per_client": 0,
    "synthetic_allocation": "equal",
    "server_steps": 0,
    "server_batch_size": 32,
    "server_step_rate": 0.1,
    "synthetic_per_class": 0,
    "procedural_classes": 64,
    "procedural_per_class": 64,
}


def without_unset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A section without the fields that earlier versions lacked, where they are unset.

    So a run of an earlier version is the same run today.
    """
    return {
        name: value
        for name, value in settings.items()
        if name not in _LATER or value != _LATER[name]
    }
