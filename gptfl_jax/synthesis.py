"""Stages 1 and 2 in a few lines: pictures of every class, and a classifier of them.

    synthetic = gf.generate(diffusion, prompts, 10, like=federation)
    start = gf.train(synthetic, "convnet", epochs=20, like=federation)
    run = gf.simulate(federation, "convnet", rounds=10, init=start)

With the same settings and seed they draw as the programs do.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from gptfl_jax import central_training, models, prompting, training
from gptfl_jax.classifier import Classifier
from gptfl_jax.data import images
from gptfl_jax.data.datasets import Dataset
from gptfl_jax.description import Description
from gptfl_jax.devices import for_steps, room_for
from gptfl_jax.errors import UserError
from gptfl_jax.federation import Federation, constants_for
from gptfl_jax.progress import Progress

_NONE: Mapping[str, Any] = MappingProxyType({})

# Of stage 2, whose program draws from the same stream.
_CENTRAL_TRAINING = 2


def train(
    dataset: Dataset,
    model: str | nn.Module = "convnet",
    *,
    epochs: int,
    batch_size: int = 32,
    optimizer: optax.GradientTransformation | None = None,
    like: Federation | None = None,
    model_options: Mapping[str, Any] = _NONE,
    augmentation: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Classifier:
    """Trains a classifier centrally, as on synthetic data.

    Args:
        dataset: of `generate`, or your own `Dataset(inputs, labels, class_names)`.
        model: as in `simulate`.
        epochs: passes over the data.
        batch_size: examples a step.
        optimizer: None: AdamW at 1e-3 with a cosine.
        like: the federation that the weights are for: its normalisation is used, and
            its classes and inputs must be the same.
        model_options: of a model by name.
        augmentation: as in `simulate`.
        seed: of initial weights, orders and augmentation.
        progress: shows a bar.

    Raises:
        UserError: an unknown model or option, or data unlike the federation's.
    """
    if like is not None and dataset.class_names != like.class_names:
        raise UserError(
            f"the classes are {', '.join(dataset.class_names)}, those of the "
            f"federation {', '.join(like.class_names)}: they must be the same"
        )
    name = model if isinstance(model, str) else ""
    if name:
        model = models.create(name, dataset.num_classes, **model_options)
    example = training.example_of(dataset.inputs)
    mean, std = constants_for(dataset.inputs) if like is None else (like.mean, like.std)
    learner = training.make_learner(
        model,
        example,
        normalisation=training.Normalisation(mean, std),
        augmentation=augmentation,
    )
    steps = -(-len(dataset.labels) // batch_size)
    if optimizer is None:
        optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, epochs * steps))
    key = jax.random.fold_in(jax.random.key(seed), _CENTRAL_TRAINING)
    begin = central_training.initial_state(learner, optimizer, key, batch_size)
    with Progress(epochs * steps, "step", shown=progress) as bar:
        for epoch in central_training.fit(
            learner,
            optimizer,
            begin,
            dataset.inputs,
            dataset.labels,
            key,
            epochs,
            batch_size,
            streamed=not room_for(dataset.inputs, for_steps(batch_size)).enough,
            after_steps=bar.update,
        ):
            bar.note(f"loss {epoch.loss:.3f}")
    sounds = like.sounds.settings if like is not None and like.sounds else None
    about = Description(
        *(name, dict(model_options), dataset.class_names),
        *(example, mean, std, sounds),
    )
    return Classifier(learner, epoch.state.variables, about)


def generate(
    generator: Callable[..., Any],
    prompts: Mapping[str, Sequence[str]],
    per_class: int,
    *,
    like: Federation | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    **options: Any,
) -> Dataset:
    """Makes labelled pictures of every class.

    Args:
        generator: (prompts, key=, **options) -> uint8 pictures [batch, height, width,
            channels], as `StableDiffusion.from_pretrained(...)`; key has one for each
            prompt.
        prompts: of each class, by its name; one is drawn for each sample.
        per_class: samples of each class.
        like: the federation whose picture size and channels they get, and whose class
            names the prompts must have.
        seed: of all draws. A sample depends on it, on its class and its number only.
        batch_size: samples at once.
        progress: shows a bar.
        options: of the generator, as num_steps and guidance_scale.

    Raises:
        UserError: prompts that are not of the federation's classes.
    """
    names = tuple(prompts) if like is None else like.class_names
    if set(names) != set(prompts):
        raise UserError(
            f"prompts are of {', '.join(prompts)}: takes those of {', '.join(names)}"
        )
    key = jax.random.key(seed)
    texts, keys = [], []
    for name in names:
        draws = prompting.draw(key, name, per_class, len(prompts[name]), 1)
        texts += [prompts[name][index] for index in draws.prompt]
        keys.append(jax.vmap(jax.random.key)(draws.seed))
    keys = jax.numpy.concatenate(keys)
    pictures = []
    with Progress(len(texts), "sample", shown=progress) as bar:
        for start in range(0, len(texts), batch_size):
            # The last batch reaches back to be full: one compiled shape.
            begin = max(0, min(start, len(texts) - batch_size))
            chosen = slice(begin, begin + batch_size)
            batch = generator(texts[chosen], key=keys[chosen], **options)
            made = np.asarray(batch)[start - begin :]
            if like is not None:
                height, _, channels = like.example.shape
                made = images.convert(made, height, channels)
            pictures.append(made)
            bar.update(len(made))
    labels = np.repeat(np.arange(len(names), dtype=np.int32), per_class)
    return Dataset(np.concatenate(pictures), labels, names)
