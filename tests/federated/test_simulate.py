"""Stage 3's loop: what it writes, how it resumes, what it refuses."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from federated import experiment, simulate
from gptfl_jax import artifacts, training
from gptfl_jax.artifacts import CheckpointMismatch, WorkdirInUse
from gptfl_jax.data import federated_data
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.fl import rounds, sampling

from .conftest import lines_without_seconds, make_config, weights

TESTED_CLIENTS = {
    "client_test_fraction": 0.25,
    "personalisation_every": 4,
    "personalisation_clients": 4,
}


def test_writes_what_it_says(tmp_path, setting, capsys):
    config = make_config()
    last = simulate.simulate(config, tmp_path, setting)
    folder = tmp_path / "federated" / "fedavg-random-s0"

    metrics = artifacts.read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(7))
    tested = [line["step"] for line in metrics if "accuracy" in line]
    assert tested == [0, 2, 4, 6]
    assert last["step"] == 6 and last["clients"] == 3 and last["dropped"] == 0

    # Everybody gets the weights and sends them back, as float32.
    variables = setting.learner.init(jax.random.key(0))
    size = 4 * training.number_of_parameters(variables)
    assert [line["bytes_up"] for line in metrics] == [3 * size * i for i in range(7)]
    assert [line["bytes_down"] for line in metrics] == [3 * size * i for i in range(7)]

    data = experiment.deal(config, setting.source.train)
    saved = json.loads((folder / "partition.json").read_text())
    assert saved["sizes"] == np.diff(data.offsets).tolist()
    assert np.sum(saved["label_counts"], axis=1).tolist() == saved["sizes"]
    real_counts = np.bincount(setting.source.train.labels)
    assert np.sum(saved["label_counts"], axis=0).tolist() == real_counts.tolist()
    assert saved["class_names"] == [str(digit) for digit in range(10)]
    assert "12 clients, 1,415 examples" in capsys.readouterr().out
    assert (folder / "partition.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "client_accuracy.json").exists()

    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["federated"]["num_clients"] == 12

    # The test accuracy in the file is that of the weights in the checkpoint.
    template = {"variables": variables}
    restored = artifacts.restore_checkpoint(folder / "checkpoints", template)
    test = setting.source.test
    logits = jax.device_get(
        setting.learner.predict(jax.device_get(restored["variables"]), test.inputs)
    )
    assert last["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == test.labels))


def test_resumed_equals_uninterrupted(tmp_path, setting, monkeypatch):
    config = make_config(**TESTED_CLIENTS)
    whole = tmp_path / "whole" / "federated" / "fedavg-random-s0"
    simulate.simulate(config, tmp_path / "whole", setting)

    stopped = tmp_path / "stopped" / "federated" / "fedavg-random-s0"
    write = artifacts.Metrics.write
    for stop_at in (1, 3, 5, 6):

        def write_or_die(self, step, stop_at=stop_at, **scalars):
            if step == stop_at:
                raise KeyboardInterrupt
            write(self, step, **scalars)

        monkeypatch.setattr(artifacts.Metrics, "write", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            simulate.simulate(config, tmp_path / "stopped", setting)
        # As a kill in the middle of a write leaves it.
        with open(stopped / "metrics.jsonl", "a") as file:
            file.write('{"step": 99, "trai')
    monkeypatch.setattr(artifacts.Metrics, "write", write)
    simulate.simulate(config, tmp_path / "stopped", setting)

    assert lines_without_seconds(stopped) == lines_without_seconds(whole)
    assert (stopped / "client_accuracy.json").read_text() == (
        whole / "client_accuracy.json"
    ).read_text()
    np.testing.assert_allclose(
        weights(stopped, setting), weights(whole, setting), rtol=0, atol=1e-6
    )


def test_clients_are_tested_on_what_they_hold_out(tmp_path, setting):
    config = make_config(**TESTED_CLIENTS)
    train = setting.source.train
    data, held_out = (
        f(config, train) for f in (experiment.deal, experiment.deal_held_out)
    )
    # Nothing is lost, and nobody's test examples are in anybody's training.
    both = np.concatenate([data.inputs, held_out.inputs]).reshape(len(train.labels), -1)
    ordered, whole = (
        x[np.lexsort(x.T)] for x in (both, train.inputs.reshape(both.shape))
    )
    np.testing.assert_array_equal(ordered, whole)
    everything = experiment.deal(make_config(), train)
    sizes, tests = np.diff(everything.offsets), np.diff(held_out.offsets)
    np.testing.assert_array_equal(tests, np.rint(sizes / 4))
    np.testing.assert_array_equal(np.diff(data.offsets), sizes - tests)

    last = simulate.simulate(config, tmp_path, setting)
    folder = tmp_path / "federated" / "fedavg-random-s0"
    metrics = artifacts.read_metrics(folder / "metrics.jsonl")
    tested = [line["step"] for line in metrics if "client_accuracy_mean" in line]
    assert tested == [0, 4, 6]
    assert last["examples"] <= np.sort(sizes - tests)[-3:].sum()

    # The file tells how the last test went, for the weights in the checkpoint.
    saved = json.loads((folder / "client_accuracy.json").read_text())
    clients = saved["clients"]
    assert saved["round"] == 6 and len(set(clients)) == 4
    assert saved["examples"] == tests[clients].tolist()
    template = {"variables": setting.learner.init(jax.random.key(0))}
    variables = artifacts.restore_checkpoint(folder / "checkpoints", template)
    logits = setting.learner.predict(
        jax.device_get(variables["variables"]), held_out.inputs
    )
    right = np.asarray(logits).argmax(-1) == held_out.labels
    of_client = np.add.reduceat(right, held_out.offsets[:-1])
    assert saved["right_before"] == of_client[clients].tolist()
    before, after = (
        np.array(saved[name]) / saved["examples"]
        for name in ("right_before", "right_after")
    )
    assert last["client_accuracy_mean"] == pytest.approx(before.mean())
    assert last["client_accuracy_worst_decile"] == pytest.approx(before.min())
    assert last["client_accuracy_best"] == pytest.approx(before.max())
    assert last["personalised_accuracy_mean"] == pytest.approx(after.mean())
    assert last["personalised_accuracy_worst_decile"] == pytest.approx(after.min())
    # A step on a client's few labels helps it.
    assert after.mean() > before.mean()


def test_when_clients_are_tested_may_change_but_not_what_they_hold_out(
    tmp_path, setting
):
    simulate.simulate(
        make_config(rounds=1, client_test_fraction=0.25), tmp_path / "a", setting
    )
    on = make_config(rounds=2, **TESTED_CLIENTS)
    last = simulate.simulate(on, tmp_path / "a", setting)
    assert last["step"] == 2 and "client_accuracy_mean" in last
    # Testing them changes nothing else.
    never = {**TESTED_CLIENTS, "personalisation_every": 0}
    simulate.simulate(make_config(rounds=2, **never), tmp_path / "b", setting)
    name = "federated/fedavg-random-s0"
    np.testing.assert_array_equal(
        weights(tmp_path / "a" / name, setting), weights(tmp_path / "b" / name, setting)
    )
    other = make_config(rounds=3, client_test_fraction=0.5)
    with pytest.raises(
        CheckpointMismatch, match=r"client_test_fraction is 0\.25 there"
    ):
        simulate.simulate(other, tmp_path / "a", setting)


def test_the_end_of_a_run_in_words():
    last = {"step": 1, "dropped": 1, "bytes_up": 10**6, "bytes_down": 2 * 10**6}
    assert simulate.outcome("a", last) == (
        "a: not tested after 1 round, 3.0 MB, 1 client dropped in the last round"
    )


def test_more_rounds_go_on_from_where_a_run_ended(tmp_path, setting, capsys):
    simulate.simulate(make_config(rounds=4), tmp_path / "a", setting)
    simulate.simulate(make_config(rounds=6), tmp_path / "a", setting)
    simulate.simulate(make_config(rounds=6), tmp_path / "b", setting)
    name = "federated/fedavg-random-s0"
    assert lines_without_seconds(tmp_path / "a" / name) == lines_without_seconds(
        tmp_path / "b" / name
    )
    capsys.readouterr()
    again = simulate.simulate(make_config(rounds=6), tmp_path / "a", setting)
    assert again["step"] == 6
    assert "6 rounds, all done" in capsys.readouterr().out


# To the bit, which the little that XLA optimises in the fast tests does not give.
@pytest.mark.long
def test_streamed_equals_data_on_the_device(tmp_path, setting, monkeypatch, capsys):
    name = "federated/fedavg-random-s0"
    device = make_config(data_placement="device")
    simulate.simulate(device, tmp_path / "device", setting)
    # Half of one run streamed, half of the other.
    simulate.simulate(
        make_config(data_placement="stream", rounds=4), tmp_path / "a", setting
    )
    simulate.simulate(device, tmp_path / "a", setting)
    simulate.simulate(make_config(rounds=2), tmp_path / "b", setting)
    assert "examples are kept on the device: 0.1 MB" in capsys.readouterr().out
    data = experiment.deal(device, setting.source.train)
    size = sum(x.nbytes for x in jax.tree.leaves(data))
    monkeypatch.setattr(simulate.devices, "free_memory", lambda mesh: 2 * size - 1)
    monkeypatch.delattr(simulate, "place")
    simulate.simulate(make_config(), tmp_path / "b", setting)
    said = capsys.readouterr().out
    assert "examples are streamed, a cohort at a time: 0.1 MB, where 0.2 MB" in said

    lines = lines_without_seconds(tmp_path / "device" / name)
    assert len(lines) == 7
    for run in ("a", "b"):
        assert lines_without_seconds(tmp_path / run / name) == lines
        np.testing.assert_array_equal(
            weights(tmp_path / run / name, setting),
            weights(tmp_path / "device" / name, setting),
        )
    # One setting serves both placements.
    source = setting.source
    assert experiment.shared_by(device, source) == (
        experiment.shared_by(make_config(), source)
    )


def test_rounds_equal_a_plain_loop_over_the_engine(tmp_path, setting):
    """Seed, partition, cohorts and keys are those of the documented streams."""
    config = make_config()
    config.seed = 3
    simulate.simulate(config, tmp_path, setting)
    data = experiment.deal(config, setting.source.train)
    base = jax.random.fold_in(jax.random.key(3), 3)
    initial, cohorts, clients = (jax.random.fold_in(base, i) for i in range(3))
    state = setting.algorithm.init(setting.learner.init(initial), 12)
    for done in range(6):
        chosen = sampling.cohort(cohorts, done, 12, 3)
        assert len(set(chosen.tolist())) == 3
        key = jax.random.fold_in(clients, done)
        rate = config.federated.client_learning_rate
        state, _ = setting.algorithm.round(
            *(state, jax.device_put(data), chosen, key, rate)
        )
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.variables)])
    got = weights(tmp_path / "federated" / "fedavg-random-s3", setting)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_natural_clients_are_the_writing_runs(setting):
    config = make_config(partition="natural")
    data = experiment.deal(config, setting.source.train)
    assert np.diff(data.offsets).tolist() == [
        *(130, 126, 130, 130, 130, 130, 130, 123, 128, 130, 128)
    ]


def test_stage_2_run_again_is_noticed(workdir, setting):
    config = make_config(init="synthetic", rounds=1)
    simulate.simulate(config, workdir, setting)
    other = setting.learner.init(jax.random.key(6))
    with artifacts.Checkpoints(workdir / "pretrain" / "checkpoints") as checkpoints:
        checkpoints.save(2, {"variables": other})
    with pytest.raises(CheckpointMismatch, match=r"federated\.initial_weights"):
        simulate.simulate(config, workdir, setting)


def test_folder_of_another_run_is_refused(tmp_path, setting):
    simulate.simulate(make_config(rounds=1, run="mine"), tmp_path, setting)
    config = make_config(rounds=1, run="mine")
    config.model.options.width = 8
    with pytest.raises(CheckpointMismatch, match=r"model\.options\.width is 4 there"):
        simulate.simulate(config, tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"federated\.batch_size is 16 there"):
        simulate.simulate(
            make_config(rounds=1, run="mine", batch_size=8), tmp_path, setting
        )


def test_lost_and_damaged_records(tmp_path, setting, capsys):
    config = make_config()
    simulate.simulate(config, tmp_path, setting)
    folder = tmp_path / "federated" / "fedavg-random-s0"
    file, record = folder / "metrics.jsonl", folder / "checkpoints" / "identity.json"
    whole, identity = file.read_bytes(), record.read_bytes()
    before, lines = weights(folder, setting), lines_without_seconds(folder)

    # Lines are lost: of a run that is done, and of one that would go on.
    shorter = b"".join(whole.splitlines(keepends=True)[:3])
    for number in (6, 8):
        for content, ends in ((shorter, "ends at step 2"), (b"", "has no line")):
            file.write_bytes(content)
            says = f"metrics.jsonl {ends}, but there is a checkpoint of step 6"
            with pytest.raises(UserError, match=says):
                simulate.simulate(make_config(rounds=number), tmp_path, setting)
            assert file.read_bytes() == content
    file.write_bytes(whole)

    # What the checkpoints are of is lost: other settings are not taken for theirs.
    record.unlink()
    with pytest.raises(UserError, match="identity.json is missing.*delete"):
        simulate.simulate(make_config(batch_size=8), tmp_path, setting)
    record.write_bytes(identity)

    # The last step is damaged: the run goes on from the one before, to the same end.
    for path in (folder / "checkpoints" / "6" / "default" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    simulate.simulate(config, tmp_path, setting)
    out, error = capsys.readouterr()
    assert "/checkpoints is damaged (default/d/" in error
    assert "has changed): checkpoint 4 is taken\n" in error
    assert "goes on after round 4" in out
    assert lines_without_seconds(folder) == lines
    np.testing.assert_allclose(weights(folder, setting), before, rtol=0, atol=1e-6)


def test_links_below_the_workdir_are_refused(tmp_path, setting):
    (tmp_path / "outside").mkdir()
    workdir = tmp_path / "workdir"
    for name in ("federated", "federated/fedavg-random-s0", "checkpoints"):
        run = workdir / "federated" / "fedavg-random-s0"
        link = run / name if name == "checkpoints" else workdir / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "outside")
        with pytest.raises(UserError, match=f"{link} is a link, and no link is follow"):
            simulate.simulate(make_config(), workdir, setting)
        link.unlink()
    assert list((tmp_path / "outside").iterdir()) == []


def test_more_rounds_go_on_unless_a_schedule_ends_with_them(tmp_path, setting):
    simulate.simulate(make_config(rounds=1), tmp_path, setting)
    assert simulate.simulate(make_config(rounds=2), tmp_path, setting)["step"] == 2
    cosine = {"learning_rate_schedule": "cosine", "run": "cosine"}
    simulate.simulate(make_config(rounds=1, **cosine), tmp_path)
    message = (
        r"federated\.rounds, over which the cosine schedule lowers the learning rate, "
        r"is 1 there and 2 here\. Give this run a name of its own "
        r"\(--config\.federated\.run=NAME\), choose another --workdir, or delete"
    )
    with pytest.raises(CheckpointMismatch, match=message):
        simulate.simulate(make_config(rounds=2, **cosine), tmp_path)


def test_a_partition_file_may_move_and_not_change(tmp_path, setting):
    file = tmp_path / "clients.txt"
    owners = [str(i % 12) for i in range(len(setting.source.train.labels))]
    file.write_text("\n".join(owners))

    def run(file, rounds):
        options = {"partition_options": {"file": str(file)}, "rounds": rounds}
        config = make_config(partition="from_file", **options)
        return simulate.simulate(config, tmp_path / "run", setting)["step"]

    assert run(file, 1) == 1
    moved = file.rename(tmp_path / "moved.txt")
    assert run(moved, 2) == 2
    moved.write_text("\n".join(reversed(owners)))
    with pytest.raises(CheckpointMismatch, match=r"options\.content is .\w{16}. there"):
        run(moved, 3)


@pytest.mark.long
def test_data_that_moved_are_the_same_and_others_are_not(tmp_path):
    def photos(place, seed=0):
        random = np.random.default_rng(seed)
        for name in ("cat", "dog"):
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(8):
                pixels = random.integers(0, 255, (6, 6, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / place / name / f"{i}.png")

    photos("here"), photos("there"), photos("others", seed=1)
    config = make_config(num_clients=2, cohort_size=1, rounds=1)
    config.federated.partition_options.min_examples = 1
    config.data.source, config.data.folder = "image_folder", str(tmp_path / "here")
    simulate.simulate(config, tmp_path / "w")
    config.data.folder, config.federated.rounds = str(tmp_path / "there"), 2
    assert simulate.simulate(config, tmp_path / "w")["step"] == 2
    config.data.folder = str(tmp_path / "others")
    with pytest.raises(CheckpointMismatch, match=r"data\.content is \S+ there"):
        simulate.simulate(config, tmp_path / "w")


@pytest.mark.long
def test_a_stage_called_from_python_is_as_the_command(repository, tmp_path):
    code = f"""
import jax
from federated import simulate
from gptfl_jax import launch
from gptfl_jax.errors import ConfigError
from tests.federated.conftest import make_config

for field, value in (("rounds", -5), ("algorithm", "fedadam")):
    config = make_config()
    config.federated[field] = value
    try:
        simulate.run(config, "{tmp_path}")
    except ConfigError as error:
        print(error)
simulate.run(make_config(rounds=2), launch.pathlib.Path("{tmp_path}"))
print(jax.device_count())
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    said = process.stdout.splitlines()
    assert said[0].startswith("config.federated.rounds = -5: takes a whole number")
    assert said[1].startswith("config.federated.algorithm = 'fedadam': takes one of")
    assert said[-1] == str(len(os.sched_getaffinity(0)))
    # A machine so busy that this takes half a minute is told how far it has come.
    lines = process.stderr.splitlines()
    assert [line for line in lines if not line.endswith(" left")] == []


def test_a_run_is_not_named_after_a_path_that_is_too_long():
    config = make_config(init=f"runs/{'a' * 240}/pretrain")
    with pytest.raises(
        UserError, match=r"init is too long.*set config\.federated\.run"
    ):
        experiment.run_name(config)


def test_cohort_larger_than_the_clients_is_refused(tmp_path, setting):
    config = make_config(partition="natural", cohort_size=12)
    with pytest.raises(ConfigError, match=r"federated\.cohort_size = 12.*11"):
        simulate.simulate(config, tmp_path, setting)


def test_second_run_on_one_folder_is_refused(tmp_path, setting):
    folder = tmp_path / "federated" / "fedavg-random-s0"
    with (
        artifacts.lock(folder),
        pytest.raises(WorkdirInUse, match="in use by another run"),
    ):
        simulate.simulate(make_config(), tmp_path, setting)


@pytest.mark.parametrize("cohort_size", [1, 12])
def test_cohorts_of_one_and_of_all(tmp_path, setting, cohort_size):
    config = make_config(cohort_size=cohort_size, rounds=2, eval_every=2)
    simulate.simulate(config, tmp_path, setting)
    folder = tmp_path / "federated" / "fedavg-random-s0"
    metrics = artifacts.read_metrics(folder / "metrics.jsonl")[1:]
    sizes = np.diff(experiment.deal(config, setting.source.train).offsets)
    _, cohorts = (rounds.key_of(0, stream) for stream in (0, 1))
    drawn = [sampling.cohort(cohorts, i, 12, cohort_size) for i in range(2)]
    assert [line["examples"] for line in metrics] == [sizes[c].sum() for c in drawn]
    assert [line["clients"] for line in metrics] == [cohort_size] * 2
    # One update has no spread, and points where the mean points.
    if cohort_size == 1:
        for line in metrics:
            assert line["update_norm_std"] == 0
            assert line["gradient_diversity"] == pytest.approx(1, rel=1e-5)
            assert line["cosine_mean"] == pytest.approx(1, rel=1e-5)
    else:
        assert [line["examples"] for line in metrics] == [1415] * 2


def test_a_data_set_of_one_class(tmp_path, setting):
    """Nine of the ten classes are names only; the tenth is learnt at once."""
    train = setting.source.train
    labels = np.full_like(train.labels, 3)
    source = setting.source._replace(train=train._replace(labels=labels))
    of_one_class = setting._replace(
        source=source, test_labels=jax.numpy.full_like(setting.test_labels, 3)
    )
    last = simulate.simulate(make_config(), tmp_path, of_one_class)
    # Macro F1 is over classes that are true or predicted, as in scikit-learn.
    assert last["accuracy"] == last["macro_f1"] == 1
    folder = tmp_path / "federated" / "fedavg-random-s0"
    saved = json.loads((folder / "partition.json").read_text())
    counts = np.array(saved["label_counts"])
    assert counts.shape == (12, 10) and counts[:, 3].tolist() == saved["sizes"]
    assert counts.sum() == 1415 and min(saved["sizes"]) >= 5


def test_rows_are_padded_by_less_than_a_sixteenth():
    assert [experiment.padded_rows(n) for n in (1, 31, 33, 1415, 2500, 7732)] == (
        [1, 31, 34, 1472, 2560, 7936]
    )
    for count in range(1, 5000):
        assert count <= experiment.padded_rows(count) < count * (1 + 1 / 16)


def test_partition_summary_in_words():
    counts = np.array([[3, 1], [0, 2]])
    data = federated_data.FederatedData(
        np.zeros((6, 1), np.float32),
        np.array([0, 0, 0, 1, 1, 1], np.int32),
        np.array([0, 4, 6], np.int32),
    )
    summary = federated_data.summarise(data, 2)
    assert summary.histogram.tolist() == counts.tolist()
    text = str(summary)
    assert "2 clients, 6 examples" in text and "2 to 4 examples" in text
