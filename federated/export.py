r"""Exports the classifier of a run of stage 2 or 3, for PyTorch, JAX and the hub.

    python -m federated.export --workdir=runs/cifar10 --run=fedavg-gptfl-s0 \
        --output=exported

writes to the folder

    model.safetensors  the weights by the names and in the layout of PyTorch: where
                       torchvision has the model, its `load_state_dict` takes them
    config.json        class names, normalisation, and what the model is
    README.md          the model card: data, settings, accuracy, and the licences of
                       the generators whose samples it learned from

and, where `--formats` names them,

    pytorch_model.bin      (torch) the same weights, for `torch.load`; needs PyTorch
    classifier.jax_export  (jax) the program and the weights in one file, which
                           `jax.export.deserialize` runs without this package, on CPUs,
                           GPUs and TPUs

`gptfl_jax.load_classifier` reads the folder back, `federated.predict` uses it, and
`config.federated.init` and `config.model.weights` take it. `--push=<owner>/<name>`
uploads it to the Hugging Face hub, to a private repository unless told otherwise.
"""

import io
import pathlib
import shlex
from collections.abc import Callable

from federated import model_card, trained
from gptfl_jax import exports
from gptfl_jax.classifier import Classifier
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch_function
from gptfl_jax.progress import say
from gptfl_jax.training import number_of_parameters


def run(
    workdir: str,
    output: str,
    run: str = "",
    step: str = "last",
    model: str = "",
    formats: str = "safetensors",
    push: str = "",
    public: bool = False,
) -> None:
    """Writes the weights of a run, and what they are of, to a folder.

    Args:
        workdir: folder of all stages' files.
        output: the folder to write to.
        run: name of the run: pretrain, or that of a federation; empty: the only one.
        step: which checkpoint: last, best, or the number of its epoch or round.
        model: the file or module of a model of your own, which is run.
        formats: some of safetensors (always written), torch and jax, with commas.
        push: repository of the hub to upload the folder to, as owner/name; log in
            with `hf auth login` before. Empty: nothing leaves the machine.
        public: whether a repository that push creates is public.

    Raises:
        UserError: there is no such run or checkpoint, the folder cannot be written
            to, or the hub refuses the upload.
    """
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    for name in wanted:
        if name not in ("safetensors", *_FORMATS):
            raise UserError(
                f"--formats={formats}: {name!r} is none of safetensors, "
                + ", ".join(_FORMATS)
            )
    found = trained.load(workdir, run, step, model)
    classifier = found.classifier
    beside = {}
    for name in dict.fromkeys(wanted):
        if name in _FORMATS:
            file, content_of = _FORMATS[name]
            beside[file] = content_of(classifier)
    beside[model_card.FILE] = model_card.card(found, beside).encode()
    folder = pathlib.Path(output).expanduser()
    exports.write(folder, classifier.description, classifier.variables, beside)
    count = number_of_parameters(classifier.variables)
    name = classifier.description.model
    say(f"{output}: {count:,} parameters of {name}, {found.folder}")
    place = shlex.quote(f"--workdir={output}")
    say(f"next: python -m federated.predict {place} FILE ...")
    if push:
        names = (exports.WEIGHTS, exports.CONFIG, *beside)
        say(f"pushed to {exports.push(folder, names, push, public)}")


def _torch(classifier: Classifier) -> bytes:
    try:
        import torch
    except ImportError:
        raise UserError(
            "--formats=torch: needs PyTorch: pip install 'gptfl-jax[features]'; "
            "without it PyTorch reads model.safetensors, by safetensors.torch"
        ) from None
    weights = exports.released_weights(classifier.description, classifier.variables)
    file = io.BytesIO()
    torch.save({name: torch.tensor(each) for name, each in weights.items()}, file)
    return file.getvalue()


_FORMATS: dict[str, tuple[str, Callable[[Classifier], bytes]]] = {
    "torch": ("pytorch_model.bin", _torch),
    "jax": ("classifier.jax_export", Classifier.exported),
}


def main() -> None:
    """Entry point of `python -m federated.export` and `gptfl-export`."""
    launch_function(run)


if __name__ == "__main__":
    main()
