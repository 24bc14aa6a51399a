import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import augmentation, configuration, training
from gptfl_jax.data import audio, sources
from gptfl_jax.errors import ConfigError

PICTURES = sources.sklearn_digits()


@pytest.fixture(scope="module")
def sounds():
    features = np.random.default_rng(0).normal(size=(2, 12, 4)).astype(np.float32)
    inputs = features, np.array([12, 9], np.int32)
    part = sources.Dataset(inputs, np.arange(2, dtype=np.int32), ("a", "b"))
    return sources.Source(part, part, (), (), sources.Sounds())


def settings(section, **fields):
    config = configuration.default_config("train", "federated")
    config[section].update(fields)
    configuration.validate(config)
    return config[section]


@pytest.mark.parametrize("section", ["train", "federated"])
def test_each_kind_of_data_has_its_fields(section, sounds):
    """Every field of the config has an effect, at its own place."""
    of_pictures = {
        **{"crop_padding": 1, "flip": True, "cutout": 2, "shift": 0.1},
        **{"scale": 0.2, "rotate": 3.0, "shear": 4.0},
    }
    made = augmentation.from_config(section, settings(section, **of_pictures), PICTURES)
    assert made == training.Augmentation(**of_pictures, cutout_fill=(0.5,))
    of_sounds = {
        **{"tempo": 0.1, "warp": 0.2, "time_shift": 3, "time_masks": 1},
        **{"time_mask_width": 4, "time_mask_share": 0.5},
        **{"frequency_masks": 2, "frequency_mask_width": 5},
    }
    made = augmentation.from_config(section, settings(section, **of_sounds), sounds)
    assert made == audio.SpecAugment(0.1, 0.2, 1, 4, 0.5, 2, 5, 3)
    inputs = made(jax.random.key(0), jax.tree.map(jnp.asarray, sounds.train.inputs))
    assert np.abs(inputs[0] - sounds.train.inputs[0]).max() > 0

    both = set(of_pictures) | set(of_sounds)
    assert both == {n for kind in configuration.AUGMENTATION.values() for n in kind}
    for source in (PICTURES, sounds):
        assert augmentation.from_config(section, settings(section), source) is None


def test_a_field_for_the_other_kind_of_data_is_refused(sounds):
    with pytest.raises(ConfigError, match=r"train.flip = True is for pictures, and th"):
        augmentation.from_config("train", settings("train", flip=True), sounds)
    with pytest.raises(ConfigError, match=r"federated.time_masks = 2 is for sounds"):
        some = settings("federated", time_masks=2)
        augmentation.from_config("federated", some, PICTURES)
    with pytest.raises(ConfigError, match="set it back to 0.2, or see config.train.cr"):
        some = settings("train", time_mask_share=0.5)
        augmentation.from_config("train", some, PICTURES)
