"""The weights that a federation starts from: `config.federated.init`."""

import json
import pathlib
import shlex
import urllib.parse

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gptfl_jax import (
    artifacts,
    choices,
    description,
    families,
    models,
    trainable,
    training,
)
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.fl import rounds
from gptfl_jax.progress import say
from gptfl_jax.web_files import is_address

# Code of the user's own that gives weights: `def weights(variables)`.
_OWN = choices.Family(
    field="federated.init",
    options="federated.init",
    home="federated.starts",
    belongs=choices.takes_first("variables"),
)
# Starts that are a folder of the workdir, and what makes them.
_STAGE_2 = {"synthetic": "pretrain", "procedural": "procedural"}


def random(variables: training.Variables) -> training.Variables:
    """The random weights as they are."""
    return variables


def _is_own(init: str) -> bool:
    """Whether a start is a Python file, with `:function` or without."""
    return choices.is_own(init) and init.partition(":")[0].endswith(".py")


def short_name(init: str) -> str:
    """What a run's folder is called by its start."""
    if _is_own(init):
        return choices.stem(init)
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
    if init == "random" or init in _STAGE_2 or _is_own(init):
        return ""
    if _is_run(pathlib.Path(init).expanduser()):
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
    if init == "random" or _is_own(init) or released(config):
        return None
    folder = pathlib.Path(init).expanduser()
    if init in _STAGE_2:
        folder = workdir / _STAGE_2[init]
    elif not folder.exists() and (workdir / folder).exists():
        folder = workdir / folder  # a run of stage 2 by its name
    return folder if folder.name == "checkpoints" else folder / "checkpoints"


def require(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses a start that is missing, before anything is computed.

    Raises:
        UserError: a file or folder of weights is missing, or cannot be had.
        ConfigError: code of the user's own cannot be.
    """
    released_file(config)
    if _is_own(config.federated.init):
        choices.find(_OWN, config.federated.init)
    folder = checkpoints(config, workdir)
    if folder is not None:
        artifacts.require(folder, _command(config, folder))


def _command(config: ConfigDict, folder: pathlib.Path) -> str:
    of_workdir = folder.parent.parent
    data = " --config.train.data=procedural" * (config.federated.init == "procedural")
    return f"python -m train.downstream --config=... --workdir={of_workdir}{data}"


def operations(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float | None]:
    """Floating-point operations behind a start and what is mixed in; None: unknown.

    `generation` is of stage 1, `stage 2` of the training of the weights. Procedural
    examples are drawn by the host, which is not counted.
    """
    made: float | None = 0.0
    trained: float | None = 0.0
    init, folder = config.federated.init, checkpoints(config, workdir)
    if folder is not None:
        known = artifacts.read_flops(folder.parent)
        made, trained = known.get("generation"), known.get("stage 2")
        if not set(known) <= {"generation", "stage 2"}:
            trained = None  # on top of released weights, or of a federation
    elif init != "random":
        made = trained = None
    mixed = config.federated.synthetic_per_client or config.federated.server_steps
    if mixed and (init == "random" or init in _STAGE_2):
        # Of these examples are those that stage 2 was trained on.
        made = artifacts.read_flops(workdir / "synthetic").get("generation")
    elif mixed:
        made = None
    return {"generation": made, "stage 2": trained}


def initial_weights(
    config: ConfigDict, workdir: pathlib.Path, learner: training.Learner
) -> training.Variables:
    """The weights that a run starts from.

    Of checkpoints, `federated.init_checkpoint` takes the last or the best: stage 2
    chooses its best by a validation split of its training set, never by the test set.
    Of released weights for other classes, and of procedural ones, the last layer stays
    random. Code of the user's own is given random weights, of the whole model.

    Raises:
        UserError: the checkpoint or file is missing, or of another model.
        ConfigError: code of the user's own is missing, or gives other weights.
    """
    key = rounds.key_of(config.seed, rounds.INITIAL_WEIGHTS)
    if _is_own(config.federated.init):
        return _own_weights(config.federated.init, learner.init(key))
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
    artifacts.require(folder, _command(config, folder))
    step = "best" if config.federated.init_checkpoint == "best" else None
    whole = trainable.whole(template)
    if config.federated.init == "procedural":
        return _procedural_weights(config, folder, learner.init(key), step)
    try:
        saved = artifacts.restore_checkpoint(folder, {"variables": whole}, step)
    except artifacts.CheckpointMismatch as error:
        flags = _flags_of_its_model(config, folder)
        raise artifacts.CheckpointMismatch(
            f"{error}. {f'Add {flags} to take its model, train' if flags else 'Train'} "
            "one of this model on these classes (python -m train.downstream), or set "
            "config.federated.init='random'"
        ) from None
    return trainable.parted(saved["variables"], template)


def _flags_of_its_model(config: ConfigDict, folder: pathlib.Path) -> str:
    """What makes the config's model that of a run; empty: it is, or is not known."""
    try:
        theirs = description.read(folder.parent / description.FILE, "")
    except (FileNotFoundError, UserError):
        return ""
    changed = {"name": theirs.model} if theirs.model != config.model.name else {}
    ours = config.model.options.to_dict()
    function = choices.find(families.MODEL, theirs.model)
    for option, (default, _, _) in choices.options(families.MODEL, function).items():
        here, there = (each.get(option, default) for each in (ours, theirs.options))
        # As JSON, which the run has kept, and in which a tuple is a list.
        if json.dumps(here, default=str) != json.dumps(there, default=str):
            changed[f"options.{option}"] = there
    return shlex.join(f"--config.model.{key}={value}" for key, value in changed.items())


def _own_weights(init: str, variables: training.Variables) -> training.Variables:
    whole = trainable.whole(variables)
    given = choices.find(_OWN, init)(whole)
    shapes = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x).name), each)
        for each in (whole, given)
    ]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"config.federated.init = {init!r}: its weights are not of the model: "
            "return the variables that it is given, with other numbers in them"
        )
    say(f"initial weights: {init}")
    return trainable.parted(jax.tree.map(jnp.asarray, given), variables)


def _procedural_weights(
    config: ConfigDict,
    folder: pathlib.Path,
    fresh: training.Variables,
    step: str | None,
) -> training.Variables:
    """All but the last layer, which told rules apart and not classes."""
    whole = trainable.whole(fresh)
    if trainable.HEAD not in whole["params"]:
        raise UserError(
            f"config.federated.init = 'procedural': {config.model.name} has no layer "
            f"{trainable.HEAD!r}, whose weights would stay random"
        )
    about = description.read(
        folder.parent / description.FILE,
        f"delete {folder.parent} and train again: {_command(config, folder)}",
        config.model.name,
    )
    model = models.create(
        config.model.name, len(about.class_names), **config.model.options.to_dict()
    )
    other = training.make_learner(model, about.example)
    saved = artifacts.restore_checkpoint(
        folder,
        {"variables": jax.eval_shape(other.init, jax.random.key(0))},
        step,
    )
    loaded = saved["variables"]
    params = {**loaded["params"], trainable.HEAD: whole["params"][trainable.HEAD]}
    return trainable.parted({**loaded, "params": params}, fresh)
