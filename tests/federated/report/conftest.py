"""Runs of a federation as the report finds them, without the federation."""

import json
import pathlib

import numpy as np
import pytest

from federated import pgf, pictures
from gptfl_jax import artifacts

from ..conftest import make_config


def make_run(
    workdir: pathlib.Path,
    name: str,
    accuracies: list[float | None],
    seed: int = 0,
    measured: bool = False,
    **federated,
) -> None:
    """A run whose round r sent 1,000 r bytes up and 500 r down.

    `measured`: with all that a run may measure about its clients.
    """
    config = make_config(rounds=len(accuracies) - 1, run=name, **federated)
    config.seed = seed
    folder = workdir / "federated" / name
    artifacts.write_run_record(folder, config)
    metrics = artifacts.Metrics(folder / "metrics.jsonl")
    for step, accuracy in enumerate(accuracies):
        line = {"bytes_up": 1000 * step, "bytes_down": 500 * step}
        if step:
            line |= {"train_loss": 1.0, "gradient_diversity": 0.1 * step, "dropped": 0}
        if step and measured:
            line |= {"inverse_gradient_diversity": 10 / step, "cosine_mean": 0.5}
            line |= {"update_norm_mean": 2.0 * step, "update_norm_std": 0.7 * step}
            line |= {"update_norm_min": 1.5 * step, "drift": 3.0 * step}
        if accuracy is not None:
            line |= {"accuracy": accuracy, "macro_f1": accuracy - 0.1, "loss": 0.5}
            if measured:
                # Seed s: 10 s % better after fine-tuning.
                line |= {
                    "client_accuracy_mean": accuracy,
                    "client_accuracy_worst_decile": accuracy / 2,
                    "client_accuracy_best": 1.0,
                    "personalised_accuracy_mean": accuracy + 0.1 * seed,
                    "personalised_accuracy_worst_decile": accuracy / 2 + 0.1 * seed,
                    "personalised_accuracy_best": 1.0,
                }
        metrics.write(step, **line, seconds=2.0)
    counts = np.arange(120).reshape(12, 10)
    artifacts.write_json(
        folder / "partition.json",
        {"class_names": list("0123456789"), "sizes": [], "label_counts": counts},
    )


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two seeds of FedAvg from scratch, two of GPT-FL."""
    make_run(tmp_path, "scratch-s0", [0.1, None, 0.92, None, 0.96], seed=0)
    make_run(tmp_path, "scratch-s1", [0.2, None, 0.80, None, 0.92], seed=1)
    options = {"init": "synthetic"}
    make_run(tmp_path, "gptfl-s0", [0.75, None, 0.95, None, 0.97], seed=0, **options)
    make_run(tmp_path, "gptfl-s1", [0.75, None, 0.97, None, 0.99], seed=1, **options)
    return tmp_path


def rows_of(workdir: pathlib.Path) -> dict[str, dict]:
    rows = json.loads((workdir / "report.json").read_text())
    assert isinstance(rows, list)
    return {row["name"]: row for row in rows}


TURNS = {"anna": {"test_speakers": "anna"}, "bert": {"test_speakers": "b"}}


def in_turns(workdir, accuracies, turns=TURNS, **options):
    """A run in each turn and seed; `accuracies` by turn, of seeds 0 and 1."""
    for turn, of_seeds in accuracies.items():
        for seed, values in enumerate(of_seeds):
            name = f"{options.get('init', 'random')}-{turn}-s{seed}"
            make_run(workdir, name, values, seed=seed, **options)
            path = workdir / "federated" / name / "run.json"
            record = json.loads(path.read_text())
            record["config"]["compare"]["data"] = turns
            record["config"]["data"]["options"] = {**turns[turn], "other": 3}
            artifacts.write_json(path, record)


@pytest.fixture
def quick_paper(monkeypatch) -> None:
    """Figures for a paper are made but not rendered."""
    for kind in ("pdf", "png"):
        monkeypatch.setattr(pictures, kind, lambda figure, *_: b"")
    monkeypatch.setattr(pgf, "pgf", lambda figure: b"")


@pytest.fixture
def quick_pictures(quick_paper, monkeypatch) -> None:
    """Figures are made but not rendered, which takes most of a report's time."""
    monkeypatch.setattr(pictures, "svg", lambda figure: b"<svg></svg>")
