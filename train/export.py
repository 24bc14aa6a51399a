"""Exports the classifier of a run of stage 2 or 3, for PyTorch and the hub.

    python -m train.export --workdir=runs/cifar10 --run=fedavg-synthetic-s0 \
        --output=exported

writes to the folder

    model.safetensors  the weights by the names and in the layout of PyTorch: where
                       torchvision has the model, its `load_state_dict` takes them
    config.json        class names, normalisation, and what the model is

`gptfl_jax.load_classifier` reads the folder back, and `config.federated.init` and
`config.model.weights` take it.
"""

import pathlib

from gptfl_jax.classifier import load_classifier
from gptfl_jax.description import FILE
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch_function
from gptfl_jax.progress import say
from gptfl_jax.training import number_of_parameters


def run(
    workdir: str,
    output: str,
    run: str = "pretrain",
    step: str = "last",
    model: str = "",
) -> None:
    """Writes the weights of a run, and what they are of, to a folder.

    Args:
        workdir: folder of all stages' files.
        output: the folder to write to.
        run: name of the run: pretrain, or that of a federation.
        step: which checkpoint: last, best, or the number of its epoch or round.
        model: the file or module of a model of your own, which is run.

    Raises:
        UserError: there is no such run or checkpoint, or the folder cannot be written
            to.
    """
    folder = _folder_of(pathlib.Path(workdir).expanduser(), run)
    wanted: int | str | None = None
    if step == "best":
        wanted = step
    elif step.isdecimal():
        wanted = int(step)
    elif step != "last":
        raise UserError(f"--step={step}: takes last, best or a number")
    classifier = load_classifier(folder, step=wanted, model=model)
    classifier.save_weights(pathlib.Path(output).expanduser())
    count = number_of_parameters(classifier.variables)
    say(f"{output}: {count:,} parameters of {classifier.description.model}, {folder}")


def _folder_of(workdir: pathlib.Path, run: str) -> pathlib.Path:
    for folder in (workdir / run, workdir / "federated" / run):
        if (folder / FILE).is_file():
            return folder
    files = [*workdir.glob(f"*/{FILE}"), *workdir.glob(f"federated/*/{FILE}")]
    there = sorted(path.parent.name for path in files)
    raise UserError(
        f"--run={run}: no such run in {workdir}, which holds "
        f"{', '.join(there) or 'none at all'}"
    )


def main() -> None:
    """Entry point of `python -m train.export` and `gptfl-export`."""
    launch_function(run)


if __name__ == "__main__":
    main()
