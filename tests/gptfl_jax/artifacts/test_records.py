"""Metrics, and what a run says of itself."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gptfl_jax import artifacts
from gptfl_jax.artifacts import Metrics
from gptfl_jax.errors import UserError


def test_metrics_are_numbers_again(tmp_path):
    metrics = Metrics(tmp_path / "run" / "metrics.jsonl")
    metrics.write(1, accuracy=jnp.float32(0.5), clients=np.int32(3), seconds=1.25)
    metrics.write(2, accuracy=float("nan"), note="x")
    first, second = artifacts.read_metrics(metrics.path)
    assert first == {"step": 1, "accuracy": 0.5, "clients": 3, "seconds": 1.25}
    assert math.isnan(second.pop("accuracy"))
    assert second == {"step": 2, "note": "x"}
    # Strict JSON: other readers know no NaN.
    assert '"accuracy": null' in metrics.path.read_text()


def test_resumed_metrics_drop_what_comes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(1, 6):
        metrics.write(step, value=step * 10)
    with open(path, "a") as file:
        file.write('{"step": 6, "val')
    assert [line["step"] for line in artifacts.read_metrics(path)] == [1, 2, 3, 4, 5]

    metrics = Metrics(path, resume_after=3)
    metrics.write(4, value=-4)
    assert [line["value"] for line in artifacts.read_metrics(path)] == [10, 20, 30, -4]
    assert artifacts.read_metrics(tmp_path / "none.jsonl") == []
    Metrics(path)
    assert artifacts.read_metrics(path) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"value": 2}', "step is missing"),
        (b'{"step": 2.5}', "step is not a whole number"),
        (b'{"step": 1}', "step 1 after 1"),
        (b'{"step": 2, "a": NaN}', "NaN is no number of JSON"),
        (b'{"step": 2, "a": 1e999}', "a is not a number"),
        (b'{"step": 2, "\xff": 1}', "byte 14 is not UTF-8"),
        (b'{"step": ' + 5000 * b"9" + b"}", "a number is too long"),
        (100_000 * b"[", "nested too deeply"),
    ],
)
def test_damaged_metrics_name_the_line(tmp_path, line, says):
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match="m.jsonl line 2 is not a line of met") as error:
        artifacts.read_metrics(tmp_path / "m.jsonl")
    assert f"({says}). Remove the line, or" in str(error.value)
    assert len(str(error.value)) < 400


def test_metrics_that_have_lost_lines_are_missed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(
        UserError, match="has no line, but .* checkpoint of step 3: lin"
    ):
        Metrics(path, resume_after=3)
    artifacts.append_records(path, [{"step": 1}, {"step": 2}])
    before = path.read_bytes()
    with pytest.raises(UserError, match="ends at step 2, but .* step 3.* or delete"):
        Metrics(path, resume_after=3)
    assert path.read_bytes() == before
    # A run that does not write a line each step says which is the last.
    Metrics(path, resume_after=3, last_line=2)
    assert artifacts.read_metrics_until(path, 2) == [{"step": 1}, {"step": 2}]


def test_require_names_the_command(tmp_path):
    assert artifacts.require(tmp_path, "x") == tmp_path
    with pytest.raises(
        UserError, match="prompts.json is missing: make it with `python"
    ):
        artifacts.require(tmp_path / "prompts.json", "python -m generate.prompts")


def test_run_record_says_how_it_was_run(tmp_path):
    config = ConfigDict({"seed": 3, "train": {"flip": True, "sizes": (1, 2)}})
    artifacts.write_run_record(tmp_path, config)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"] == {"seed": 3, "train": {"flip": True, "sizes": [1, 2]}}
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["devices"][0] == "cpu:0"
    assert record["argv"] == sys.orig_argv
