"""What a workdir holds of trained classifiers: found by the name of their run."""

import pathlib
from typing import NamedTuple

from federated import run_files
from gptfl_jax import artifacts, exports
from gptfl_jax.classifier import Classifier, load_classifier
from gptfl_jax.description import FILE
from gptfl_jax.errors import UserError


class Trained(NamedTuple):
    """A classifier that was read back.

    Attributes:
        classifier: what it computes.
        folder: of its run, or of its export.
        step: the epoch or round of its checkpoint; 0: of an export.
    """

    classifier: Classifier
    folder: pathlib.Path
    step: int


def load(workdir: str, run: str = "", step: str = "last", model: str = "") -> Trained:
    """The classifier of a run of stage 2 or 3, or of an exported folder.

    Args:
        workdir: folder of all stages' files; or a folder of `federated.export`.
        run: name of the run: pretrain, or that of a federation; empty: the only one.
        step: which checkpoint: last, best, or the number of its epoch or round.
        model: file or module of a model of your own.

    Raises:
        UserError: there is no such run or checkpoint, or there are several and `run`
            is empty; or its server has nothing that was trained.
    """
    root = pathlib.Path(workdir).expanduser()
    wanted: int | str | None = None
    if step == "best":
        wanted = step
    elif step.isdecimal():
        wanted = int(step)
    elif step != "last":
        raise UserError(f"--step={step}: takes last, best or a number")
    if not run and exports.is_export(root):
        return Trained(load_classifier(root, model=model), root, 0)
    folder = _folder_of(root, run)
    if folder.parent.name == "federated" and _is_local(folder):
        raise UserError(
            f"{folder}: each of its clients keeps weights of its own (local_only), and "
            "the server's are the initial ones: take another run"
        )
    classifier = load_classifier(folder, step=wanted, model=model)
    with artifacts.Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        if wanted is None:
            wanted = checkpoints.latest_step()
        elif wanted == "best":
            wanted = checkpoints.best_step()
    return Trained(classifier, folder, wanted or 0)


def _is_local(folder: pathlib.Path) -> bool:
    try:
        return run_files.read_config(folder)["federated"]["algorithm"] == "local_only"
    except FileNotFoundError:
        return False


def _folder_of(workdir: pathlib.Path, run: str) -> pathlib.Path:
    if run:
        for folder in (workdir / run, workdir / "federated" / run):
            if (folder / FILE).is_file():
                return folder
    files = [*workdir.glob(f"*/{FILE}"), *workdir.glob(f"federated/*/{FILE}")]
    if len(files) == 1 and not run:
        return files[0].parent
    there = ", ".join(sorted(path.parent.name for path in files)) or "none at all"
    if run or not files:
        raise UserError(
            f"--run={run}: no such run in {workdir}, which holds {there}"
            if run
            else f"{workdir}: holds no run of train.downstream or federated.simulate"
        )
    raise UserError(f"--run is missing: {workdir} holds {there}")
