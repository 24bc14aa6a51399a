"""The LoRA weights shipped in `gptfl_jax/assets/glyphs-4-steps`."""

import jax
import numpy as np
import pytest

from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.released import hub, licences, lora
from train.glyphs import quality

NAME = "glyphs-4-steps"


def test_they_are_small_and_under_the_models_licence():
    file = lora.find(NAME)
    assert file.parent == hub.ASSETS / NAME
    assert file.stat().st_size <= 1e6
    assert {value.dtype for value in hub.read_weights(file).values()} == {
        np.dtype(np.float16)
    }
    assert lora.licence_of(NAME) == licences.licence_of("glyphs") == "apache-2.0"


@pytest.mark.long
def test_four_steps_without_guidance_teach_to_read_handwriting():
    """What is asked of 10 guided steps of the model alone."""
    pipeline = StableDiffusion.from_pretrained("glyphs", lora=NAME)
    samples = quality.sample_digits(
        pipeline, jax.random.key(7), 500, num_steps=4, guidance_scale=1.0
    )
    assert quality.digits_accuracy(*samples)["accuracy"] >= 0.75
