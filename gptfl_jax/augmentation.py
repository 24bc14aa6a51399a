"""Augmentation as a config asks for it, of pictures or of sounds."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from gptfl_jax.configuration import AUGMENTATION
from gptfl_jax.data.audio import SpecAugment
from gptfl_jax.data.datasets import Source
from gptfl_jax.errors import ConfigError
from gptfl_jax.training import Augmentation


def from_config(
    section: str, settings: ConfigDict, source: Source
) -> Callable[[PRNGKeyArray, Any], Any] | None:
    """The augmentation of a section of the config; None where it asks for none.

    Args:
      section: its name, for errors.
      settings: with the fields of `configuration.AUGMENTATION`.
      source: the data, of which the kind decides.

    Raises:
      ConfigError: a field is set that is for data of the other kind.
    """
    kinds = ("pictures", "sounds")
    kind = kinds[source.sounds is not None]
    other = kinds[source.sounds is None]
    for name, field in AUGMENTATION[other].items():
        if settings[name] != field.default:
            raise ConfigError(
                f"config.{section}.{name} = {settings[name]!r} is for {other}, and the "
                f"data are {kind}: set it back to {field.default!r}, or see "
                + ", ".join(f"config.{section}.{each}" for each in AUGMENTATION[kind])
            )
    fields = AUGMENTATION[kind]
    if all(not settings[name] for name in fields if name != "time_mask_share"):
        return None
    if kind == "pictures":
        chosen = {name: settings[name] for name in fields}
        return Augmentation(**chosen, cutout_fill=source.mean)
    return SpecAugment(
        tempo=settings.tempo,
        warp=settings.warp,
        time_masks=settings.time_masks,
        time_width=settings.time_mask_width,
        time_share=settings.time_mask_share,
        frequency_masks=settings.frequency_masks,
        frequency_width=settings.frequency_mask_width,
        shift=settings.time_shift,
    )
