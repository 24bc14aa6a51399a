"""Advice about a federation that runs, and will not do what one hopes for."""

import pathlib

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from federated import starts
from gptfl_jax import (
    choices,
    configuration,
    description,
    evaluation,
    exports,
    families,
)
from gptfl_jax.data.federated_data import Summary
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say

# Examples of a client, on average, below which it is worth a word.
_FEW = 5
_ENOUGH = 10


class Adviser:
    """Says each piece of advice once, to many runs in one process too."""

    def __init__(self):
        self._said = {""}

    def tell(self, text: str) -> None:
        """Says it, unless it is empty or was said before."""
        if text not in self._said:
            self._said.add(text)
            say(text)


def on_clients(federated: ConfigDict, summary: Summary) -> str:
    """What to change where the clients have next to nothing; empty: they have enough.

    Args:
        summary: of the partition.
    """
    clients, examples = len(summary.sizes), int(summary.sizes.sum())
    dealt = choices.takes(families.PARTITION, federated.partition, "num_clients")
    if not dealt or examples >= _FEW * clients:
        return ""
    fewer = max(examples // _ENOUGH, 1)
    text = (
        f"advice: {examples:,} examples are {examples / clients:.1f} for each of "
        f"{clients:,} clients, too few to learn from. Set "
        f"config.federated.num_clients={fewer}, for {_ENOUGH} each"
    )
    if federated.cohort_size > fewer and not configuration.sampling_repeats(federated):
        text += f", and config.federated.cohort_size to {fewer} at most"
    return text


def on_classes(
    config: ConfigDict, workdir: pathlib.Path, class_names: tuple[str, ...]
) -> str:
    """What to do where the start tells other classes; empty: it does not, or not known.

    Args:
        class_names: of the clients' data.
    """
    folder = _run_of_start(config, workdir)
    if folder is not None:
        file, section = folder / description.FILE, ""
    else:
        released = starts.released(config)
        folder = pathlib.Path(released).expanduser()
        if not released or not exports.is_export(folder):
            return ""
        file, section = folder / exports.CONFIG, exports.SECTION
    try:
        theirs = description.read(file, "", config.model.name, section).class_names
    except (FileNotFoundError, UserError):
        return ""  # of an earlier version; the weights are read all the same
    if len(theirs) != len(class_names):
        return ""  # it was refused, or its last layer was left out
    differ = [
        pair for pair in zip(theirs, class_names, strict=True) if len({*pair}) > 1
    ]
    if not differ:
        return ""
    which = ", ".join(f"{here!r} is {there!r} there" for there, here in differ[:3])
    more = f" and {len(differ) - 3:,} more" if len(differ) > 3 else ""
    order = " in another order" if {*theirs} == {*class_names} else ""
    return (
        f"advice: {folder} learned other classes than the clients' data have{order}: "
        f"{which}{more}. Its last layer tells those. Train stage 2 on these classes "
        f"(python -m train.downstream), or set config.federated.init='random'"
    )


def on_start(
    config: ConfigDict,
    workdir: pathlib.Path,
    accuracy: float,
    labels: Int[np.ndarray, " examples"],
) -> str:
    """What to do where the start tells the classes no better than a constant would.

    Args:
        accuracy: of the initial weights on the test set.
        labels: of the test set.
    """
    folder = _run_of_start(config, workdir)
    found = evaluation.beside_chance(accuracy, labels)
    if folder is None or not found:
        return ""
    preview = folder.parent / "synthetic" / "preview.png"
    look = f" ({preview})" if preview.exists() else ""
    return (
        f"advice: the start, {folder}, {found}. See whether the examples it learned "
        f"from show what the clients' data show{look}, or set "
        "config.federated.init='random'"
    )


def _run_of_start(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path | None:
    """The run whose weights are the start, last layer and all; None: there is none."""
    if config.federated.init == "procedural":  # whose last layer is left out
        return None
    checkpoints = starts.checkpoints(config, workdir)
    return None if checkpoints is None else checkpoints.parent
