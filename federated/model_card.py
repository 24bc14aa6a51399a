"""The card of an exported classifier: README.md, as the Hugging Face hub shows it.

It is written from what the run has left: its description, run.json, metrics.jsonl, and
of a synthetic start those of stage 2 and the manifest of its samples. No path of the
machine is in it.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from federated.trained import Trained
from gptfl_jax import artifacts, choices, configuration, user_files
from gptfl_jax.training import number_of_parameters

FILE = "README.md"

_RECORD = {
    "config": {"*": "anything"},
    "versions?": {"*": "text"},
    "commit?": ("null", "text"),
    "date?": "text",
    "device_kind?": "text",
}
# What is the machine's or the run's own business, not the method's.
_LEFT_OUT = {
    *("federated.run", "federated.checkpoint_every", "federated.keep_checkpoints"),
    *("federated.eval_every", "federated.eval_batch_size", "train.run"),
    *("train.checkpoint_every", "train.eval_every", "train.eval_batch_size"),
    *("data.folder", "data.options", "federated.init", "model.weights"),
}
_MOST_CLASSES = 40


def card(trained: Trained, files: Iterable[str]) -> str:
    """The text of README.md.

    Args:
        trained: what is exported.
        files: names of those beside it.

    Raises:
        UserError: a record of the run is damaged.
    """
    about = trained.classifier.description
    record = _record(trained.folder)
    pretrain = _start(trained.folder, record)
    sounds = about.sounds is not None
    kind = "audio-classification" if sounds else "image-classification"
    parts = [
        _front_matter(kind),
        f"# {_line(trained.folder.name)}",
        _model(trained),
        _accuracy(trained, record),
        _use(sounds, set(files)),
        _data(record),
        _settings(record, trained.folder),
        _made(pretrain),
        _provenance(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(kind: str) -> str:
    tags = ("gptfl-jax", "federated-learning", "synthetic-data", "jax")
    lines = ["---", "library_name: gptfl-jax", f"pipeline_tag: {kind}", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _model(trained: Trained) -> str:
    about = trained.classifier.description
    count = number_of_parameters(trained.classifier.variables)
    options = ", ".join(f"{name} {value}" for name, value in about.options.items())
    names = [_line(name) for name in about.class_names]
    more = len(names) - _MOST_CLASSES
    shown = ", ".join(names[:_MOST_CLASSES]) + (f" and {more} more" if more > 0 else "")
    model = choices.stem(about.model)
    return (
        f"`{_line(model)}`{f' ({_line(options)})' if options else ''} of {count:,} "
        f"parameters, for {len(names)} classes: {shown}."
    )


def _accuracy(trained: Trained, record: Mapping[str, Any]) -> str:
    try:
        lines = artifacts.read_metrics(trained.folder / "metrics.jsonl")
    except FileNotFoundError:
        lines = []
    tested = [
        line for line in lines if "accuracy" in line and line["step"] <= trained.step
    ]
    if not tested:
        return ""
    line = tested[-1]
    unit = "round" if "federated" in trained.folder.parent.name else "epoch"
    numbers = [f"accuracy {100 * line['accuracy']:.1f} %"]
    if "macro_f1" in line:
        numbers.append(f"macro F1 {100 * line['macro_f1']:.1f} %")
    if "loss" in line:
        numbers.append(f"loss {line['loss']:.4f}")
    seed = record.get("config", {}).get("seed", 0)
    return (
        f"On the real test set: {', '.join(numbers)}, after {unit} {line['step']}, of "
        f"one run (seed {seed})."
    )


def _use(sounds: bool, files: set[str]) -> str:
    file = "yes.wav" if sounds else "picture.jpg"
    lines = [
        "## Use",
        "",
        "```python",
        "import gptfl_jax",
        "",
        'classifier = gptfl_jax.load_classifier("FOLDER")',
        f'print(classifier.probabilities("{file}"))',
        "```",
        "",
        "`python -m federated.predict --workdir=FOLDER FILES` does it on the command "
        "line. `model.safetensors` has the weights by the names and in the layout of "
        "PyTorch.",
    ]
    if "pytorch_model.bin" in files:
        lines.append(
            "`pytorch_model.bin` has the same for `torch.load(..., weights_only=True)`."
        )
    if "classifier.jax_export" in files:
        lines += [
            "",
            "`classifier.jax_export` computes probabilities from raw inputs, with "
            "nothing but JAX:",
            "",
            "```python",
            "import jax",
            "",
            'content = bytearray(open("classifier.jax_export", "rb").read())',
            "probabilities = jax.export.deserialize(content).call(inputs)",
            "```",
        ]
    return "\n".join(lines)


def _data(record: Mapping[str, Any]) -> str:
    config = record.get("config", {})
    data = config.get("data", {})
    if "source" not in data:
        return ""
    lines = ["## Data", "", f"Real data: `{_line(choices.stem(str(data['source'])))}`."]
    federated = config.get("federated", {})
    if "federated" in record.get("of", ()) and "partition" in federated:
        lines.append(
            f"{federated.get('num_clients')} clients by the partition "
            f"`{_line(choices.stem(str(federated['partition'])))}`, "
            f"{federated.get('cohort_size')} of them a round. What clients hold was "
            "used for training where it lies; no protection such as differential "
            "privacy is claimed."
        )
        init = federated.get("init")
        if init in ("random", "synthetic"):
            lines.append(f"The weights at the start: {init}.")
    return "\n".join(lines)


def _settings(record: Mapping[str, Any], folder: pathlib.Path) -> str:
    sections = ("model", *record.get("of", ()))
    rows = []
    for dotted, field in configuration.fields(*sections):
        section, _, name = dotted.partition(".")
        there = record.get("config", {}).get(section)
        if dotted in _LEFT_OUT or not isinstance(there, dict) or name not in there:
            continue
        value = there[name]
        if value != json.loads(json.dumps(field.default, default=str)):
            rows.append(f"| `{dotted}` | `{_line(json.dumps(value))}` |")
    if not rows:
        return ""
    head = ["## Settings", "", "Those that differ from the defaults.", ""]
    return "\n".join([*head, "| field | value |", "| --- | --- |", *rows])


def _made(pretrain: pathlib.Path | None) -> str:
    """What the synthetic start rests on, with the licence of the generator."""
    if pretrain is None:
        return ""
    trained_on = _record(pretrain).get("config", {}).get("train", {}).get("data", "")
    if trained_on not in ("synthetic", "both"):
        return ""
    lines = ["## Synthetic data", "", "Stage 2 has learned from generated samples:", ""]
    samples = artifacts.read_manifest(pretrain.parent / "synthetic")
    made = collections.Counter((each.model, each.licence) for each in samples)
    for (model, licence), count in made.items():
        # A local folder is known by its name alone.
        name = pathlib.PurePosixPath(model).name if model.startswith("/") else model
        lines.append(
            f"- {count:,} by `{_line(name)}`, licence of the generator: "
            f"{_line(licence or 'not recorded')}"
        )
    lines += [
        "",
        "A generator's licence may bind what it makes, and what is trained on that: "
        "see to it before you pass this model on.",
    ]
    return "\n".join(lines)


def _provenance(record: Mapping[str, Any]) -> str:
    versions = record.get("versions", {})
    if not versions:
        return ""
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    facts = [named]
    if commit := record.get("commit"):
        facts.append(f"commit {commit}")
    facts += [record[name] for name in ("device_kind", "date") if name in record]
    return f"## Made with\n\n{'; '.join(map(_line, facts))}."


def _record(folder: pathlib.Path) -> dict[str, Any]:
    """run.json of a run, with the sections `of` its stage; empty: there is none."""
    remedy = "delete it, and the card goes without"
    try:
        record = artifacts.read_json(folder / "run.json", _RECORD, remedy)
    except FileNotFoundError:
        return {}
    of_stage_3 = folder.parent.name == "federated"
    return {**record, "of": ("federated" if of_stage_3 else "train",)}


def _start(folder: pathlib.Path, record: Mapping[str, Any]) -> pathlib.Path | None:
    """The folder of stage 2 whose weights a run has or began with; None: of none."""
    of: Sequence[str] = record.get("of", ())
    if "train" in of:
        return folder
    federated = record.get("config", {}).get("federated", {})
    init = federated.get("init") if isinstance(federated, dict) else None
    if init == "synthetic":
        return folder.parent.parent / "pretrain"
    if isinstance(init, str) and (pathlib.Path(init) / "checkpoints").is_dir():
        return pathlib.Path(init)
    return None


def _line(text: object) -> str:
    """A text on one line, which ends no cell of a table and no code."""
    return user_files.printable(text).replace("|", "/").replace("`", "'")
