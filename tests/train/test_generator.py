import pathlib

import pytest

from gptfl_jax.launch import read_config
from train import generator


def test_what_is_trained():
    for name, section, phases in (
        ("glyphs", "text_to_image", "900 steps of vae, 6,200 steps of unet"),
        ("few_steps", "few_steps", "500 steps of student"),
    ):
        assert generator.phases_of(read_config(name), section) == phases


@pytest.mark.parametrize(
    ("name", "program", "field"),
    [
        ("glyphs", "images", "model"),
        ("voices", "speech", "model"),
        ("drums", "sounds", "model"),
        ("few_steps", "images", "lora"),
    ],
)
def test_what_takes_a_trained_generator(name, program, field):
    command = generator.then(read_config(name), pathlib.Path("a b"))
    assert command == (
        f"python -m generate.{program} --config=... --workdir=... "
        f"'--config.generate.{field}=a b/{field}'"
    )
