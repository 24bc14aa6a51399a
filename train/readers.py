"""A small classifier of sounds, by which generators are measured."""

import numpy as np
import optax
from jaxtyping import Float32, Int32, PRNGKeyArray
from tqdm.auto import tqdm

from gptfl_jax import central_training, devices, evaluation, models, training
from gptfl_jax.augmentation import SpecAugment

Features = tuple[Float32[np.ndarray, "clips frames bands"], Int32[np.ndarray, " clips"]]
Reader = tuple[training.Learner, training.Variables]


def train_reader(
    inputs: Features,
    labels: Int32[np.ndarray, " clips"],
    num_classes: int,
    shift: int,
    key: PRNGKeyArray,
    epochs: int,
) -> Reader:
    """An `audio_cnn` trained with AdamW and SpecAugment, 64 clips a step.

    Args:
        inputs, labels: of the clips.
        num_classes: that they are of.
        shift: largest move of a clip, in frames.
        key: of all draws.
        epochs: passes over the clips.
    """
    augmentation = SpecAugment(
        tempo=0.2,
        warp=0.15,
        shift=shift,
        time_masks=1,
        time_width=10,
        frequency_masks=1,
        frequency_width=8,
    )
    learner = training.make_learner(
        models.create("audio_cnn", num_classes),
        training.example_of(inputs),
        augmentation=augmentation,
    )
    size = 64
    steps = -(-len(labels) // size)
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(2e-3, epochs * steps), weight_decay=5e-4
    )
    state = training.init_state(learner, optimizer, key)
    state = devices.replicate(state, devices.for_steps(size))
    passes = central_training.fit(
        learner, optimizer, state, inputs, labels, key, epochs, size
    )
    *_, last = tqdm(passes, "reader", epochs, mininterval=5)
    return learner, last.state.variables


def accuracy(
    reader: Reader,
    inputs: Features,
    labels: Int32[np.ndarray, " clips"],
    num_classes: int,
) -> float:
    """Share of clips whose class a reader recognises."""
    return evaluation.evaluate(*reader, inputs, labels, num_classes).accuracy
