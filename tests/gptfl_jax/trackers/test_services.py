"""Trackers with an extra of their own, for real and without a network."""

import json
import sqlite3
import struct
import subprocess
import sys

import PIL.Image
import pytest

from gptfl_jax import trackers

pytestmark = pytest.mark.long

# In a process of its own: these packages keep threads and settings.
PROGRAM = """
import json, pathlib, sys
from gptfl_jax import artifacts, configuration, trackers

run, picture = map(pathlib.Path, sys.argv[1:3])
config = configuration.default_config("data")
config.tracker, config.tracker_options = sys.argv[3], json.loads(sys.argv[4])
for done, steps in ((None, (0, 1)), (1, (2,))):
    with trackers.start(config, run, "run", "group", done) as tracking:
        if done is None:
            tracking.picture("preview", picture)
        metrics = artifacts.Metrics(run / "metrics.jsonl", done, follow=tracking.line)
        for step in steps:
            metrics.write(step, loss=step / 4)
"""


def log_in_two_parts(tmp_path, monkeypatch, repository, tracker, **options):
    """Logs steps 0 and 1, then goes on with step 2; gives the run's id."""
    PIL.Image.new("RGB", (5, 4), "red").save(tmp_path / "red.png")
    run = tmp_path / "run"
    arguments = (run, tmp_path / "red.png", tracker, json.dumps(options))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "the run goes on without it" not in done.stdout
    return json.loads((run / trackers.FILE).read_text())["id"]


def records_of(content):
    """The records of a .wandb file: LevelDB's log format behind 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:  # of a block
            at += left
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline(tmp_path, monkeypatch, repository):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    options = {"mode": "offline", "project": "ours"}
    name = log_in_two_parts(tmp_path, monkeypatch, repository, "wandb", **options)
    from wandb.proto import wandb_internal_pb2

    lines, ids, settings = [], set(), {}
    for path in sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb")):
        for content in records_of(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert record.run.project == "ours"
                for update in record.run.config.update:
                    settings[update.key] = json.loads(update.value_json)
            if record.HasField("history"):
                lines.append(
                    {
                        item.key or ".".join(item.nested_key): item.value_json
                        for item in record.history.item
                    }
                )
    losses = [(int(line["_step"]), float(line["loss"])) for line in lines]
    assert losses == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert ids == {name}
    assert settings["data.source"] == "sklearn_digits"
    assert any("preview" in key for key in lines[0])


def test_trackio(tmp_path, monkeypatch, repository):
    pytest.importorskip("trackio", reason="the extra `trackio` is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    options = {"project": "ours"}
    name = log_in_two_parts(tmp_path, monkeypatch, repository, "trackio", **options)
    (file,) = (tmp_path / "trackio").glob("ours*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
    assert {run for run, *_ in rows} == {name}
    found = [(step, json.loads(text)) for _, step, text in rows]
    losses = [(step, line["loss"]) for step, line in found if "loss" in line]
    assert losses == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert any("preview" in line for _, line in found)
