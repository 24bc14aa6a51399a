"""The weights that a federation starts from: `config.federated.init`."""

import pathlib
import urllib.parse

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gptfl_jax import artifacts, models, trainable, training
from gptfl_jax.errors import UserError
from gptfl_jax.fl import rounds
from gptfl_jax.progress import say
from gptfl_jax.web_files import is_address


def short_name(init: str) -> str:
    """What a run's folder is called by its start."""
    if is_address(init):
        return pathlib.PurePosixPath(urllib.parse.urlsplit(init).path).stem
    # runs/other/pretrain/checkpoints is not a name of a folder.
    return init.strip("/").replace("/", "_")


def released(config: ConfigDict) -> str:
    """The weights, as `models.find_weights` takes them; empty: it starts from others.

    Raises:
        UserError: `init=weights`, and `model.weights` is empty.
    """
    init = config.federated.init
    if init == "weights":
        if not config.model.weights:
            raise UserError("config.model.weights is empty: federated.init needs it")
        return config.model.weights
    if init in ("random", "synthetic") or _is_run(pathlib.Path(init).expanduser()):
        return ""
    return init if models.stands_for_weights(init) else ""


def _is_run(folder: pathlib.Path) -> bool:
    return folder.name == "checkpoints" or (folder / "checkpoints").is_dir()


def released_file(config: ConfigDict) -> pathlib.Path | None:
    """The file of `released`, downloaded where it has to be; None: there is none.

    Raises:
        UserError: it is missing, or cannot be had.
    """
    weights, model = released(config), config.model
    if not weights:
        return None
    return models.find_weights(weights, model.name, **model.options.to_dict())


def checkpoints(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path | None:
    """The folder of checkpoints that a run starts from; None: it starts from others."""
    init = config.federated.init
    if init == "random" or released(config):
        return None
    folder = pathlib.Path(init).expanduser()
    if init == "synthetic":
        folder = workdir / "pretrain"
    return folder if folder.name == "checkpoints" else folder / "checkpoints"


def initial_weights(
    config: ConfigDict, workdir: pathlib.Path, learner: training.Learner
) -> training.Variables:
    """The weights that a run starts from.

    Of checkpoints, `federated.init_checkpoint` takes the last or the best: stage 2
    chooses its best by a validation split of its training set, never by the test set.
    Of released weights for other classes, the last layer stays random.

    Raises:
        UserError: the checkpoint or file is missing, or of another model.
    """
    key = rounds.key_of(config.seed, rounds.INITIAL_WEIGHTS)
    file, folder = released_file(config), checkpoints(config, workdir)
    if file is None and folder is None:
        return learner.init(key)
    template = jax.eval_shape(learner.init, key)
    if file is not None:
        variables, complete = models.load_weights(
            config.model.name, trainable.whole(learner.init(key)), file
        )
        head = "" if complete else ", but for the last layer, which is random"
        say(f"initial weights: {released(config)}{head}")
        return trainable.parted(jax.tree.map(jnp.asarray, variables), template)
    of_workdir = folder.parent.parent
    artifacts.require(
        folder, f"python -m train.downstream --config=... --workdir={of_workdir}"
    )
    step = "best" if config.federated.init_checkpoint == "best" else None
    saved = artifacts.restore_checkpoint(
        folder, {"variables": trainable.whole(template)}, step
    )
    return trainable.parted(saved["variables"], template)
