"""Trackers: what they are given, that they go on, and that they end no run."""

import json
import struct
import sys

import PIL.Image
import pytest

from gptfl_jax import artifacts, choices, configuration, families, launch, trackers
from gptfl_jax.errors import UserError


def make_config(tracker="none", **options):
    config = configuration.default_config("data")
    config.tracker, config.tracker_options = tracker, options
    configuration.validate(config)
    return config


OWN = """
from gptfl_jax.trackers import Run, Tracker

SEEN = []

class Mine(Tracker):
    def __init__(self, run, limit):
        self.limit = limit
        SEEN.append(("start", run))

    def log(self, step, scalars):
        if step == self.limit:
            raise RuntimeError("no more")
        SEEN.append((step, dict(scalars)))

    def picture(self, name, file):
        SEEN.append((name, file.name))

    def finish(self):
        SEEN.append("end")


def mine(run: Run, limit: int = -1) -> Tracker:
    '''Mine.'''
    return Mine(run, limit)
"""


@pytest.fixture
def own(tmp_path):
    """A tracker of the user's own: its file, and what it was given."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    found = choices.find(families.TRACKER, str(file))
    return str(file), found.__globals__["SEEN"]


def write(folder, lines, tracking, done=None):
    metrics = artifacts.Metrics(folder / "metrics.jsonl", done, follow=tracking.line)
    for step in lines:
        metrics.write(step, loss=step / 4, note="text", nothing=float("nan"))


def test_a_tracker_of_ones_own_is_given_every_line_once(own, tmp_path):
    file, seen = own
    config = make_config(file)
    run = tmp_path / "run"
    with trackers.start(config, run, "run", "group") as tracking:
        (run / "a.png").write_bytes(b"")
        tracking.picture("preview", run / "a.png")
        tracking.picture("preview", run / "missing.png")
        write(run, (0, 1), tracking)
    first = seen[0][1]
    assert (first.name, first.group, first.done) == ("run", "group", None)
    assert first.config["data.source"] == "sklearn_digits"
    assert first.machine["devices"][0].startswith("cpu")
    assert seen[1:] == [
        ("preview", "a.png"),
        *((0, {"loss": 0.0}), (1, {"loss": 0.25})),
        "end",
    ]
    # It goes on in the same run after a kill.
    seen.clear()
    with trackers.start(config, run, "run", "group", 1) as tracking:
        write(run, (2,), tracking, done=1)
    assert (seen[0][1].id, seen[0][1].done) == (first.id, 1)
    assert seen[1:] == [(2, {"loss": 0.5}), "end"]


def test_one_that_comes_later_is_shown_what_it_has_missed(own, tmp_path):
    file, seen = own
    run = tmp_path / "run"
    with trackers.start(make_config(), run, "run", "group") as tracking:
        write(run, (0, 1, 2, 3), tracking)
    assert not (run / trackers.FILE).exists()
    with trackers.start(make_config(file), run, "run", "group", 2) as tracking:
        write(run, (3,), tracking, done=2)
    assert seen[0][1].done is None
    assert [step for step, *_ in seen[1:-1]] == [0, 1, 2, 3]


def test_a_tracker_that_fails_ends_no_run(own, tmp_path, capsys):
    file, seen = own
    run = tmp_path / "run"
    with trackers.start(make_config(file, limit=1), run, "run", "group") as tracking:
        write(run, (0, 1, 2), tracking)
    assert capsys.readouterr().out == (
        "tracker own: RuntimeError: no more; the run goes on without it, and "
        "metrics.jsonl has all lines\n"
    )
    assert seen[1:] == [(0, {"loss": 0.0})]
    lines = artifacts.read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    # A record that was changed is told in the same way.
    (run / trackers.FILE).write_text("{")
    with trackers.start(make_config(file), run, "run", "group", 2) as tracking:
        write(run, (3,), tracking, done=2)
    said = capsys.readouterr().out
    assert trackers.FILE in said and "delete it" in said


def test_what_is_refused_before_work_starts(monkeypatch):
    with pytest.raises(UserError, match="config.tracker = 'tensorbord'"):
        make_config("tensorbord")
    with pytest.raises(UserError, match="tracker_options"):
        make_config("tensorboard", project="mine")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'gptfl-jax\[wandb\]'"):
        trackers.check(make_config("wandb"))
    trackers.check(make_config())


def test_the_command_line_sets_it():
    config = configuration.default_config()
    texts = [("tracker_options.mode", "offline"), ("tracker", "wandb")]
    configuration.set_texts(config, texts)
    configuration.validate(config)
    assert config.tracker_options.to_dict() == {"mode": "offline"}
    assert launch.read_config("digits").tracker == "none"


def events_of(folder):
    """(step, value) of TensorBoard's event files, which are records of protobuf."""
    from tensorboardX.proto import event_pb2

    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                yield event.step, value


def test_tensorboard_files_are_read_back(tmp_path):
    run = tmp_path / "run"
    config = make_config("tensorboard")
    PIL.Image.new("RGB", (5, 4), "red").save(tmp_path / "red.png")
    with trackers.start(config, run, "run", "group") as tracking:
        tracking.picture("preview", tmp_path / "red.png")
        write(run, (0, 1, 2), tracking)
    with trackers.start(config, run, "run", "group", 1) as tracking:
        write(run, (2, 3), tracking, done=1)
    found = [*events_of(run / "tensorboard")]
    losses = [
        (step, value.simple_value) for step, value in found if value.tag == "loss"
    ]
    assert sorted(losses) == [(0, 0.0), (1, 0.25), (2, 0.5), (2, 0.5), (3, 0.75)]
    (picture,) = (v.image for _, v in found if v.tag == "preview")
    assert (picture.width, picture.height) == (5, 4)
    texts = {value.tag: value for _, value in found if value.HasField("tensor")}
    (text,) = texts["config/text_summary"].tensor.string_val
    stored = json.loads(text.decode().strip("`\n"))
    assert stored["data.source"] == "sklearn_digits"
