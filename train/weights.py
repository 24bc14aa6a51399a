"""Fetches the weights of stage 2 that the authors of GPT-FL release.

    python -m train.weights --name=vgg19_cifar10

downloads them once, to `gptfl-jax/weights` in the user's cache folder, goes on where a
download was cut off, and writes them as `federated.export` does, to a folder that
`config.federated.init` and `config.model.weights` take. The name alone will do for
these, too: `--config.federated.init=vgg19_cifar10`.

The weights of pictures come in one archive of all models, whose SHA-256 is not
published. `--url` takes the address or the path of another copy, of it or of a file in
it, with `#sha256=<digits>` behind an address to have it checked.
"""

import pathlib

import jax
import numpy as np

from gptfl_jax import description, exports, models
from gptfl_jax.data import audio, datasets
from gptfl_jax.errors import UserError
from gptfl_jax.labels import label_set
from gptfl_jax.launch import launch_function
from gptfl_jax.progress import say
from gptfl_jax.released import gptfl


def run(name: str, url: str = "", output: str = "") -> None:
    """Fetches a release, and writes it as safetensors with its config.

    Args:
        name: of the weights, as vgg19_cifar10; an unknown one is answered with all.
        url: address or path of the file, or of an archive that holds it; empty: the
            authors'.
        output: the folder to write to; empty: weights/<name>.

    Raises:
        UserError: there is no such release, it cannot be had, or it is of another
            model.
    """
    release = gptfl.release(name)
    file = gptfl.find(name, url)
    about = describe(release)
    learner = description.make_learner(about)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    variables, whole = models.load_weights(release.model, shapes, file)
    if not whole:
        raise UserError(
            f"{file}: is not of the {len(about.class_names)} classes of {name}: name "
            "another with --url"
        )
    folder = pathlib.Path(output or f"weights/{name}").expanduser()
    exports.write(folder, about, variables)
    say(
        f"{folder}: {name}. A federation starts from it with --config.federated.init="
        f"{folder} {gptfl.fields(release)}"
    )


def describe(release: gptfl.Release) -> description.Description:
    """What the weights of a release are of."""
    classes = (*label_set(release.labels).classes, *release.extra_classes)
    options = {**release.options, **release.as_original}
    if len(release.shape) == 3:
        example = jax.ShapeDtypeStruct(release.shape, np.uint8)
        inputs = example, datasets.IMAGENET_MEAN, datasets.IMAGENET_STD, None
    else:
        example = (
            jax.ShapeDtypeStruct(release.shape, np.float32),
            jax.ShapeDtypeStruct((), np.int32),
        )
        inputs = example, (), (), audio.FeatureSettings()
    return description.Description(release.model, options, classes, *inputs)


def main() -> None:
    """Entry point of `python -m train.weights` and `gptfl-weights`."""
    launch_function(run)


if __name__ == "__main__":
    main()
