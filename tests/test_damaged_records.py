"""Readers of records, fed with what is none: they take it or say so in a line.

What a reader takes goes on to those who use it, as far as that is quick.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import pytest

from federated import run_files, series
from federated.report import figures, page, rows, runs, tables
from federated.sweep import results
from generate import sample_folder, samples, text_models
from gptfl_jax import artifacts, configuration, description, exports
from gptfl_jax.data import audio
from gptfl_jax.errors import UserError

from . import mutations
from .federated.conftest import make_config
from .federated.report.conftest import make_run

SAMPLE = artifacts.Sample(
    "a/0", "a", "an a", 1, 7.5, "m", 3, 20.0, "mit", artifacts.digest(b"")
)
REMEDIES = ("delete", "Remove", "remove", "make it with", "put the file", "train it")


class Record(NamedTuple):
    """A kind of record, and who reads it."""

    file: str
    """Its path in the workdir that `read` takes."""
    read: Callable[[pathlib.Path], object]
    lines: bool = False
    """A value a line."""
    refused: tuple[str, ...] = ("empty", "binary", "deep lists", "all of it: null")
    """Damage that must not pass."""


def report_numbers(workdir):
    """All of a report but its pictures."""
    found = runs.load_runs(workdir)
    methods = runs.methods_of(found)
    start = runs.synthetic_only(methods)
    methods = [*([start] if start else []), *methods]
    numbers = [rows.row_of(each, (0.9,)) for each in methods]
    tables.of_methods(numbers, (0.9,)).text(80)
    tables.of_clients(numbers).text(80)
    page.settings(methods)
    page.provenance(workdir, found)


def provenance(workdir):
    run_files.read_provenance(workdir / "synthetic" / "run.json")


def clients(workdir):
    method = runs.methods_of(runs.load_runs(workdir))[0]
    figures.client_accuracies(method, workdir)


def partition(workdir):
    run_files.read_partition(workdir / "federated" / "run")


def trained(workdir):
    series.require_synthetic_only([make_config(init="synthetic")], workdir)


def former_sweep(workdir):
    results.keep_former(workdir / "sweep", [])


def prompts(workdir):
    config = configuration.default_config("data", "prompts", "generate")
    samples.read_prompts(workdir, config)


def drawn(workdir):
    text_models._Store(workdir / "prompts_drawn.jsonl").of("a", {})


def synthetic(workdir):
    plan, folder = [SAMPLE._replace(sha256=None)], workdir / "synthetic"
    sample_folder.SampleFolder(folder, plan, {"steps": 2}, lambda _: True).open()


def classifier(workdir):
    description.read(workdir / "c" / "classifier.json", "train it again")


def exported(workdir):
    description.read(workdir / "c" / "config.json", "make it with", "", "gptfl_jax")


def checkpoints(workdir):
    with artifacts.Checkpoints(workdir / "c", {"m": 1}, read_only=True) as saved:
        saved.best_step()


def resumed(workdir):
    artifacts.Metrics(workdir / "federated" / "run" / "metrics.jsonl", 2)


RUN = "federated/run/"
OF_METRICS = ("binary", "deep lists", "all of it: null", "step: text", "step: missing")
RECORDS = {
    "run.json": Record(RUN + "run.json", report_numbers),
    "run.json of stage 1": Record("synthetic/run.json", provenance),
    "run.json of stage 2": Record("pretrain/run.json", trained),
    "metrics.jsonl": Record(RUN + "metrics.jsonl", report_numbers, True, OF_METRICS),
    "metrics.jsonl resumed": Record(RUN + "metrics.jsonl", resumed, True, OF_METRICS),
    "partition.json": Record(RUN + "partition.json", partition),
    "client_accuracy.json": Record(RUN + "client_accuracy.json", clients),
    "sweep.json": Record(
        "sweep/sweep.json",
        former_sweep,
        refused=(
            "binary",
            "deep lists",
            "points: missing",
            "points/0/runs: a fraction",
        ),
    ),
    "prompts.json": Record("prompts.json", prompts),
    "prompts_drawn.jsonl": Record(
        "prompts_drawn.jsonl", drawn, True, ("numbers: text", "sentences: missing")
    ),
    "manifest.jsonl": Record(
        "synthetic/manifest.jsonl",
        synthetic,
        True,
        ("binary", "deep lists", "file: null", "seed: a fraction", "sha256: a list"),
    ),
    "settings.json": Record("synthetic/settings.json", synthetic),
    "classifier.json": Record("c/classifier.json", classifier),
    "config.json": Record(
        "c/config.json",
        exported,
        refused=(
            *("binary", "gptfl_jax/inputs/0/dtype: text", "gptfl_jax/mean: a list"),
            *("gptfl_jax/model/name: text", "gptfl_jax/sounds/hop: null"),
            *("gptfl_jax/model/options/width: a fraction", "gptfl_jax: missing"),
        ),
    ),
    "identity.json": Record("c/identity.json", checkpoints),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with one of each."""
    workdir = tmp_path_factory.mktemp("workdir")
    make_run(workdir, "run", [0.1, 0.5, 0.7], measured=True)
    counts = {"examples": [4, 10], "right_before": [0, 5], "right_after": [2, 8]}
    artifacts.write_json(workdir / RUN / "client_accuracy.json", counts)
    record = json.loads((workdir / RUN / "run.json").read_text())
    federated = record["config"]["federated"]
    read = run_files._RUN["config"]["federated"]
    record["config"]["federated"] = {
        name: value for name, value in federated.items() if {name, f"{name}?"} & {*read}
    }
    record["config"]["model"] = {"name": "convnet"}
    del record["config"]["report"]
    artifacts.write_json(workdir / RUN / "run.json", record)
    record["config"] = {"train": {"data": "synthetic"}}
    for stage in ("synthetic", "pretrain"):
        artifacts.write_json(workdir / stage / "run.json", record)
    points = [{"name": "a", "runs": 2, "by_seed": [0.5, 0.6]}]
    artifacts.write_json(workdir / "sweep" / "sweep.json", {"points": points})
    content = {"prompts": {"cat": ["a cat"]}, "made": {"method": "ucg", "config": {}}}
    artifacts.write_json(workdir / "prompts.json", content)
    line = {"class": "a", "source": "b", "numbers": [0, 1], "sentences": ["a", "b"]}
    artifacts.append_records(workdir / "prompts_drawn.jsonl", [line, line])
    artifacts.write_bytes(workdir / "synthetic" / "a" / "0", b"")
    artifacts.append_samples(workdir / "synthetic", [SAMPLE])
    artifacts.write_json(workdir / "synthetic" / "settings.json", {"steps": 2})
    with artifacts.Checkpoints(workdir / "c", {"m": 1}, best="a") as saved:
        saved.save(1, {"x": 1}, {"a": 1.0})
    example = jax.ShapeDtypeStruct((8, 8, 1), "uint8")
    about = description.Description(
        *("convnet", {"width": 4}, ("a", "b"), example, (0.5,), (0.5,)),
        audio.FeatureSettings(),
    )
    about.save(workdir / "c")
    artifacts.write_json(workdir / "c" / "config.json", exports.config_of(about))
    return workdir


@pytest.mark.parametrize("kind", RECORDS)
def test_damage_ends_in_a_line_that_names_the_file_and_the_remedy(workdir, kind):
    record = RECORDS[kind]
    path = workdir / record.file
    whole = {each: each.read_bytes() for each in workdir.rglob("*.json*")}
    if record.lines:
        values = [json.loads(line) for line in whole[path].splitlines()]
        damaged = mutations.of_json_lines(values)
    else:
        damaged = mutations.of_json(json.loads(whole[path]))
    refused = set()
    for damage, content in damaged:
        path.write_bytes(content)
        try:
            record.read(workdir)
        except UserError as error:
            refused.add(damage)
            says = str(error)
            assert path.name in says or str(path.parent) in says, (damage, says)
            assert says.isprintable() and len(says) < 700, (damage, says)
            assert any(word in says for word in REMEDIES), (damage, says)
        except Exception as error:
            raise AssertionError(f"{kind}, {damage}: {error!r}") from error
        # Programs that start put files in order.
        for each, before in whole.items():
            if each == path or each.read_bytes() != before:
                each.write_bytes(before)
    assert {*record.refused} <= refused, sorted(refused)
    # No file at all, but something of its name.
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=path.name):
        record.read(workdir)
    path.rmdir()
    path.write_bytes(whole[path])
    record.read(workdir)
