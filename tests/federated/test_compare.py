"""Methods beside one another: every one with every seed, or in turns."""

import copy
import re
import shutil

import pytest

from federated import compare, experiment, run_writer, series, simulate
from gptfl_jax import artifacts, configuration
from gptfl_jax.errors import ConfigError, UserError

from .conftest import lines_without_seconds, make_config


def test_compare_runs_every_method_with_every_seed(
    workdir, setting, monkeypatch, capsys
):
    config = make_config(rounds=2)
    config.compare.methods = {
        "scratch": {"init": "random"},
        "gptfl": {"init": "synthetic", "eval_every": 1},
    }
    config.compare.seeds = (0, 2)
    configs = compare.runs(config)
    assert [experiment.run_name(each) for each in configs] == [
        *("gptfl-s0", "gptfl-s2", "scratch-s0", "scratch-s2")
    ]
    assert not any(each.compare.methods for each in configs)
    # Seeds, initial weights and step sizes share compiled programs, batches do not.
    source = setting.source
    configs += [make_config(rounds=2, client_learning_rate=0.2)]
    assert len({experiment.shared_by(each, source) for each in configs}) == 1
    other, first = make_config(rounds=2, batch_size=9), configs[0]
    assert experiment.shared_by(other, source) != experiment.shared_by(first, source)

    prepared = []
    monkeypatch.setattr(
        experiment,
        "prepare",
        lambda config, source: (
            prepared.append(config) or experiment.on(setting, source)
        ),
    )
    monkeypatch.setattr(series, "_WORTH_SAYING_S", 0)
    compare.run(config, workdir)
    assert len(prepared) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"4 runs (seeds 0, 2): {workdir / 'federated'}\n")
    assert re.search(r"\[1/4\] gptfl-s0: .* MB\n", out)
    assert re.search(r"\[2/4\] gptfl-s2: .* MB; about 00:\d\d left for 2 runs\n", out)
    assert re.search(r"\[4/4\] scratch-s2: .* MB\n", out)
    compare.run(config, workdir)
    out = capsys.readouterr().out
    assert out.startswith("4 runs (seeds 0, 2), 4 of them done: ")
    other = copy.deepcopy(config)
    other.federated.client_learning_rate = 0.5
    with pytest.raises(UserError, match="4 of 4 runs failed: gptfl-s0, gptfl-s2, "):
        compare.run(other, workdir)
    said = capsys.readouterr().out
    assert re.search(
        r"\[1/4\] gptfl-s0: .* is 0\.1 there and 0\.5 here\. Choose another", said
    )
    alone = make_config(rounds=2, run="alone")
    alone.seed = 2
    simulate.simulate(alone, workdir, setting)
    root = workdir / "federated"
    assert lines_without_seconds(root / "alone") == lines_without_seconds(
        root / "scratch-s2"
    )


def test_compare_in_turns(workdir, setting, monkeypatch):
    """Every method in every turn on the turn's data, as one run of it alone."""
    config = make_config(rounds=2, eval_every=1)
    config.data.options = {"test_blocks": 3}
    config.compare.methods = {"scratch": {"init": "random"}, "gptfl": {}}
    config.federated.init = "synthetic"
    config.compare.data = {
        "late": {"blocks": 14},
        "early": {"blocks": 13, "test_blocks": 2},
    }
    config.compare.seeds = (0, 2)
    configuration.validate(config)
    configs = compare.runs(config)
    # Turns outermost: one set of data is in memory at a time.
    assert [experiment.run_name(each) for each in configs] == [
        *("gptfl-early-s0", "gptfl-early-s2", "scratch-early-s0", "scratch-early-s2"),
        *("gptfl-late-s0", "gptfl-late-s2", "scratch-late-s0", "scratch-late-s2"),
    ]
    options = [each.data.options.to_dict() for each in configs]
    assert options[0] == {"test_blocks": 2, "blocks": 13}
    assert options[-1] == {"test_blocks": 3, "blocks": 14}

    prepared, loaded, load = [], [], experiment.load
    monkeypatch.setattr(
        experiment,
        "prepare",
        lambda config, source: (
            prepared.append(config) or experiment.on(setting, source)
        ),
    )
    monkeypatch.setattr(
        experiment, "load", lambda config: loaded.append(config) or load(config)
    )
    compare.run(config, workdir)
    assert len(prepared) == 1 and len(loaded) == 2
    # The padding to a common number of rows is not seen.
    for each in (configs[1], configs[-1]):
        name = experiment.run_name(each)
        with each.ignore_type():
            each.federated.run = "alone"
        alone = experiment.on(setting, load(each))
        assert len(experiment.deal(each, alone.source.train).labels) == 1415
        shutil.rmtree(workdir / "federated" / "alone", ignore_errors=True)
        simulate.simulate(each, workdir, alone)
        assert lines_without_seconds(workdir / "federated" / "alone") == (
            lines_without_seconds(workdir / "federated" / name)
        )


def test_what_seeds_hold_out_changes_no_shape(workdir, setting, monkeypatch):
    """Runs of a program are filled up to the rows of the largest: compiled once."""
    config = make_config(rounds=1, client_test_fraction=0.25)
    config.compare.methods = {"one": {}, "other": {"init": "synthetic"}}
    config.compare.seeds = (0, 1, 2)
    monkeypatch.setattr(experiment, "prepare", lambda config, source: setting)
    # simulated: (examples trained on and held out, rows of both)
    simulated = []

    def simulate_(config, workdir, setting, **options):
        train = setting.source.train
        counts = experiment.rows_dealt(config, train)
        trained = experiment.deal(config, train, setting.rows)
        held_out = experiment.deal_held_out(config, train, setting.held_out_rows)
        assert counts == (trained.offsets[-1], held_out.offsets[-1])
        assert sum(counts) == 1415 and not held_out.inputs[counts[1] :].any()
        simulated.append((*counts, len(trained.labels), len(held_out.labels)))
        return {"step": 1, "bytes_up": 0, "bytes_down": 0}

    monkeypatch.setattr(simulate, "simulate", simulate_)
    compare.run(config, workdir)
    trained, held_out, rows, held_out_rows = zip(*simulated, strict=True)
    assert len(simulated) == 6 and len(set(trained)) > 1
    assert set(rows) == {max(trained)} and set(held_out_rows) == {max(held_out)}


def test_compare_from_starts(workdir, setting, monkeypatch):
    config = make_config(rounds=1)
    config.compare.methods = {
        "alone": {"algorithm": "local_only"},
        "fedavg": {"client_learning_rate": 0.2},
    }
    mine = str(workdir / "pretrain")
    config.compare.starts = {
        "random": {"fedavg": {"client_learning_rate": 0.3}},
        "mine": {"init": mine, "alone": {"local_epochs": 2}},
    }
    config.compare.seeds = (4,)
    configuration.validate(config)
    found = {
        experiment.run_name(each): (
            *(each.federated.algorithm, each.federated.init),
            *(each.federated.client_learning_rate, each.federated.local_epochs),
        )
        for each in compare.runs(config)
    }
    assert found == {
        "alone-mine-s4": ("local_only", mine, 0.1, 2),
        "fedavg-mine-s4": ("fedavg", mine, 0.2, 1),
        "alone-random-s4": ("local_only", "random", 0.1, 1),
        "fedavg-random-s4": ("fedavg", "random", 0.3, 1),
    }
    # A start that is missing is told before any run begins.
    monkeypatch.setattr(simulate, "simulate", None)
    for init, message in {
        "procedural": r"train\.downstream .*--config\.train\.data=procedural",
        "imagenet": "there are none for convnet",
        "weights.py": "no such file",
    }.items():
        config.compare.starts.mine.init = init
        with pytest.raises(UserError, match=message):
            compare.run(config, workdir)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ({"random": {"fedsgd": {}}}, "starts.random.fedsgd: no such method; there are"),
        ({"random": {"one": {"round": 3}}}, r"starts\.random\.one\.round: no such f"),
        ({"a": {"init": 3}}, "compare.starts = .*takes {'name': {'init'"),
        (["random"], "compare.starts = "),
    ],
)
def test_starts_are_names_and_changes(starts, message):
    config = make_config()
    config.compare.methods = {"one": {}}
    with config.compare.ignore_type():
        config.compare.starts = starts
    with pytest.raises(ConfigError, match=message):
        configuration.validate(config)


def test_a_stage_2_that_saw_real_data_is_refused_in_turns(workdir):
    """What one turn holds out another one trains on."""
    config = make_config()
    config.compare.methods = {"gptfl": {"init": "synthetic"}}
    config.compare.data = {"late": {"blocks": 14}}
    for init in ("synthetic", str(workdir / "pretrain")):
        config.compare.methods.gptfl.init = init
        record = {"config": {"train": {"data": "both"}}}
        artifacts.write_json(workdir / "pretrain" / "run.json", record)
        with pytest.raises(
            UserError, match="config.train.data = 'both', hence on exam"
        ):
            compare.run(config, workdir)


@pytest.mark.parametrize("turns", [{"a/b": {"x": 1}}, {"a": {}}, {"a": 3}, ["a"]])
def test_turns_are_names_and_options(turns):
    config = make_config()
    with config.compare.ignore_type():
        config.compare.data = turns
    with pytest.raises(ConfigError, match="compare.data = .*keyword of config.data.op"):
        configuration.validate(config)


def test_compare_checks_the_methods_first(tmp_path):
    config = make_config()
    with pytest.raises(UserError, match="compare.methods is empty"):
        compare.run(config, tmp_path)
    config.compare.methods = {"one": {"round": 3}}
    message = r"config\.compare\.methods\.one\.round: no such field; did you"
    with pytest.raises(ConfigError, match=message):
        compare.run(config, tmp_path)
    config.compare.methods = {"one": {"rounds": 0}}
    with pytest.raises(ConfigError, match=r"config\.federated\.rounds = 0"):
        compare.run(config, tmp_path)


def test_a_failed_method_does_not_stop_the_comparison(
    tmp_path, setting, monkeypatch, capsys
):
    def fail_or_pass(config, workdir, setting, **how):
        if config.federated.run == "bad-s0":
            raise run_writer.CohortFailed("bad-s0, round 1: all NaN")
        line = dict.fromkeys(("accuracy", "macro_f1", "loss"), 0.5)
        return {**line, "step": 1, "bytes_up": 0, "bytes_down": 0}

    monkeypatch.setattr(experiment, "prepare", lambda config, source: setting)
    monkeypatch.setattr(simulate, "simulate", fail_or_pass)
    config = make_config()
    config.compare.methods = {"bad": {"client_learning_rate": 1e9}, "good": {}}
    config.compare.seeds = (0,)
    with pytest.raises(UserError, match="1 of 2 runs failed: bad-s0"):
        compare.run(config, tmp_path)
    out = capsys.readouterr().out
    assert "[1/2] bad-s0: round 1: all NaN\n" in out
    assert "good-s0: accuracy 0.5000" in out


def test_a_failed_turn_does_not_stop_the_comparison(
    tmp_path, setting, monkeypatch, capsys
):
    """One has fewer clients than a cohort, another is not to be read."""
    line = dict.fromkeys(("accuracy", "macro_f1", "loss"), 0.5)
    last = {**line, "step": 1, "bytes_up": 0, "bytes_down": 0}
    monkeypatch.setattr(experiment, "prepare", lambda config, source: setting)
    monkeypatch.setattr(simulate, "simulate", lambda *_, **how: last)
    config = make_config(partition="natural", cohort_size=5)
    config.compare.methods = {"one": {}}
    config.compare.data = {"a": {"blocks": 5}, "b": {"blocks": 99}, "c": {"blocks": 13}}
    config.compare.seeds = (0,)
    with pytest.raises(UserError, match="2 of 3 runs failed: one-a-s0, one-b-s0"):
        compare.run(config, tmp_path)
    out = capsys.readouterr().out
    assert re.search(r"\[1/3\] one-a-s0: config\.federated\.cohort_size = 5: take", out)
    assert re.search(r"\[2/3\] one-b-s0: config\.data\.options\.blocks = 99: take", out)
    assert "[3/3] one-c-s0: accuracy 0.5000" in out


def test_the_pace_of_runs_leaves_the_first_out(tmp_path, capsys):
    configs = [make_config(rounds=2, run=name) for name in "abcd"]
    pace = series._Pace(configs, tmp_path)
    assert capsys.readouterr().out == f"4 runs (seed 0): {tmp_path}\n"
    assert pace.after("a", 100.0) == ""
    assert pace.after("b", 20.0) == "; about 00:40 left for 2 runs"
    # Half a minute on average, of which nothing is said.
    assert pace.after("c", 38.0) == ""
    assert pace.after("d", 20.0) == pace.after("d", 20.0) == ""
