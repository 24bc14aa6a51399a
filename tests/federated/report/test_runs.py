"""Which runs the report takes, and which of them together."""

import json

import pytest

from federated import report
from federated.report import runs
from gptfl_jax import artifacts
from gptfl_jax.errors import UserError

from ..conftest import make_config
from .conftest import in_turns, make_run, rows_of

pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        *(("fedavg", "FedAvg"), ("fedavgm", "FedAvgM"), ("scaffold", "SCAFFOLD")),
        *(("fednova", "FedNova"), ("feddyn", "FedDyn"), ("moon", "MOON")),
        ("local_only", "Local training"),
    ],
)
def test_names_of_methods(algorithm, name):
    def called(init):
        return runs.display_name({"algorithm": algorithm, "init": init})

    assert called("random") == f"{name} from scratch"
    assert called("synthetic") == f"GPT-FL ({name})"


def test_methods_of_one_name_are_told_apart(workdir):
    make_run(workdir, "other-s0", [0.1, 0.5], partition_options={"alpha": 0.5})
    report.run(make_config(), workdir)
    names = set(rows_of(workdir))
    assert "FedAvg from scratch (alpha 0.5)" in names
    assert "FedAvg from scratch (alpha 0.1)" in names
    # It is no other's namesake, but a reader is to see what it may be compared with.
    assert "GPT-FL (FedAvg) (alpha 0.1)" in names


def test_methods_of_several_tasks_say_theirs(tmp_path):
    make_run(tmp_path, "a", [0.1, 0.5], partition="iid")
    for alpha in (0.1, 0.5):
        options = {"algorithm": "fedprox", "partition_options": {"alpha": alpha}}
        make_run(tmp_path, f"b{alpha}", [0.1, 0.5], **options)
    make_run(tmp_path, "c", [0.1, 0.5], partition="iid", client_learning_rate=0.3)
    # Only two fields tell the three partitions apart: of IID there is no alpha.
    assert [method.name for method in runs.methods_of(runs.load_runs(tmp_path))] == [
        "FedAvg from scratch (partition iid, client_learning_rate 0.1)",
        "FedAvg from scratch (partition iid, client_learning_rate 0.3)",
        "FedProx from scratch (partition dirichlet, alpha 0.1)",
        "FedProx from scratch (partition dirichlet, alpha 0.5)",
    ]


def test_a_data_set_is_told_by_its_name_and_a_network_as_model(tmp_path):
    for run, algorithm, source, model in (
        ("a", "fedavg", "sklearn_digits", "convnet"),
        ("b", "fedprox", "own/moons.py", "convnet"),
        ("c", "fedprox", "own/moons.py", "mlp"),
    ):
        make_run(tmp_path, run, [0.1, 0.5], algorithm=algorithm)
        path = tmp_path / "federated" / run / "run.json"
        record = json.loads(path.read_text())
        record["config"]["data"] |= {"source": source, "folder": f"data/{source}"}
        record["config"]["model"]["name"] = model
        artifacts.write_json(path, record)
    assert [method.name for method in runs.methods_of(runs.load_runs(tmp_path))] == [
        "FedAvg from scratch (source sklearn_digits, model convnet)",
        "FedProx from scratch (source own/moons.py, model convnet)",
        "FedProx from scratch (source own/moons.py, model mlp)",
    ]


def test_only_the_runs_named(workdir, capsys):
    config = make_config()
    config.report.runs = ("scratch-s1",)
    report.run(config, workdir)
    rows = rows_of(workdir)
    assert list(rows) == ["FedAvg from scratch"]
    assert rows["FedAvg from scratch"]["accuracy_std"] == 0
    assert "±" not in capsys.readouterr().out
    config.report.runs = ("scratch-s7",)
    with pytest.raises(UserError, match=r"scratch-s7.*is missing.*federated\.simulate"):
        report.run(config, workdir)


def test_runs_outside_of_the_turns_are_methods_of_their_own(tmp_path):
    in_turns(tmp_path, {"anna": ([0.1, 0.5],), "bert": ([0.2, 0.9],)})
    path = tmp_path / "federated" / "random-bert-s0" / "run.json"
    record = json.loads(path.read_text())
    record["config"]["data"]["options"]["test_speakers"] = "cleo"
    artifacts.write_json(path, record)
    names = [method.name for method in runs.methods_of(runs.load_runs(tmp_path))]
    assert len(names) == 2 and "FedAvg from scratch (test_speakers cleo)" in names


@pytest.mark.parametrize(("init", "methods"), [("random", 1), ("weights", 2)])
def test_weights_tell_methods_apart_that_start_from_them(tmp_path, init, methods):
    for seed, file in enumerate(("", "resnet.pth")):
        make_run(tmp_path, f"run-{seed}", [0.1, 0.2], seed)
        path = tmp_path / "federated" / f"run-{seed}" / "run.json"
        record = json.loads(path.read_text())
        record["config"]["federated"]["init"] = init
        record["config"]["model"]["weights"] = file
        if not file:  # as before there was such a field
            del record["config"]["model"]["weights"]
        path.write_text(json.dumps(record))
    found = runs.methods_of(runs.load_runs(tmp_path))
    assert len(found) == methods
    assert sum(len(method.runs) for method in found) == 2


def test_unfinished_run_is_mentioned(workdir, capsys):
    file = workdir / "federated/scratch-s0/metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    report.run(make_config(), workdir)
    said = "scratch-s0: 3 of 4 rounds so far, left out of the numbers"
    assert said in capsys.readouterr().out
    row = rows_of(workdir)["FedAvg from scratch"]
    # Of the two runs the other is finished, and counts alone.
    assert (row["rounds"], row["seeds"], row["runs"]) == (4, [1], 1)
    assert (row["accuracy_mean"], row["accuracy_std"]) == (0.92, 0)
    assert row["unfinished"] == {"scratch-s0": [3, 4]}
    page = (workdir / "report.html").read_text()
    assert "Left out, being unfinished: scratch-s0 (3 of 4 rounds)." in page


def test_a_method_with_no_finished_run_is_marked(workdir, capsys):
    for seed, done in ((0, 3), (1, 4)):
        file = workdir / f"federated/gptfl-s{seed}/metrics.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:done]))
    report.run(make_config(), workdir)
    name = "GPT-FL (FedAvg) (unfinished: 2 to 3 of 4 rounds)"
    row = rows_of(workdir)[name]
    assert row["unfinished"] == {"gptfl-s0": [2, 4], "gptfl-s1": [3, 4]}
    assert row["seeds"] == [0, 1]
    said = capsys.readouterr().out
    assert name in said and "gptfl-s0: 2 of 4 rounds so far\n" in said
    page = (workdir / "report.html").read_text()
    assert name in page and "Left out" not in page
    assert rows_of(workdir)["FedAvg from scratch"]["unfinished"] == {}


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match=r"no federated run here.*federated\.simulate"):
        report.run(make_config(), tmp_path)


@pytest.mark.parametrize(
    "turns",
    [
        # The changes of one are some of another's, or they change different options.
        {"few": {"blocks": 3}, "fewer": {"blocks": 3, "test_blocks": 4}},
        {"few": {"blocks": 3}, "fewer": {"test_blocks": 4}},
        {"fewer": {"test_blocks": 4}, "even-fewer": {"test_blocks": 4, "blocks": 3}},
    ],
)
def test_turns_that_change_the_same_or_different_options(tmp_path, turns):
    in_turns(tmp_path, dict.fromkeys(turns, ([0.1, 0.5], [0.1, 0.6])), turns)
    (method,) = runs.methods_of(runs.load_runs(tmp_path))
    assert method.turns == list(turns)
    assert {run.folder: run.turn for run in method.runs} == {
        f"random-{turn}-s{seed}": turn for turn in turns for seed in (0, 1)
    }


def test_a_seed_that_lacks_a_turn_is_left_out(tmp_path, capsys):
    in_turns(tmp_path, {"anna": ([0.1, 0.5], [0.1, 0.7]), "bert": ([0.2, 0.9],)})
    report.run(make_config(), tmp_path)
    row = rows_of(tmp_path)["FedAvg from scratch"]
    # 0.5 and 0.9 of seed 0; anna's 0.7 alone is no number of seed 1.
    assert row["seeds"] == [0] and row["accuracy_mean"] == pytest.approx(0.7)
    assert row["by_turn"]["anna"]["seeds"] == [0]
    assert row["partial"] == ["random-anna-s1"]
    said = "random-anna-s1: left out of the numbers, as seed 1 has not done all turns\n"
    assert said in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "Left out, as their seeds have not done all turns: random-anna-s1." in page


def test_a_method_that_lacks_turns_is_marked(tmp_path):
    in_turns(tmp_path, {"anna": ([0.1, 0.5],), "bert": ([0.2, 0.9],)})
    in_turns(tmp_path, {"bert": ([0.2, 0.9],)}, init="synthetic")
    make_run(tmp_path, "other", [0.1, 0.3], algorithm="fedprox")
    names = [method.name for method in runs.methods_of(runs.load_runs(tmp_path))]
    # FedProx was run on other data, once.
    assert names == [
        *("FedAvg from scratch (other 3)", "FedProx from scratch"),
        "GPT-FL (FedAvg) (other 3) (1 of 2 turns: bert)",
    ]
