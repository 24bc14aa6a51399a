"""Augmentation, of `config.train` and `config.federated`."""

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
