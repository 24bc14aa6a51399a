"""What runs have cost, counted by hand."""

import json

import pytest

from federated import report
from federated.report import cost, figures, rows, runs, tables
from gptfl_jax import artifacts
from gptfl_jax.errors import UserError

from ..conftest import make_config
from .conftest import make_run, rows_of

pytestmark = pytest.mark.usefixtures("quick_pictures")

FLOPS = {"generation": 1e6, "stage 2": 2e5, "example": 10.0, "server's round": 500.0}


def record(workdir, name, flops=None, examples=7):
    """Gives a run a cost, and the rounds of its metrics their examples and steps."""
    folder = workdir / "federated" / name
    content = json.loads((folder / "run.json").read_text())
    if flops is not None:
        content["flops"] = flops
    artifacts.write_json(folder / "run.json", content)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line |= {"examples": examples, "steps": 3}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def only_method(workdir, **fields):
    (method,) = runs.methods_of(runs.load_runs(workdir))
    return method


def test_operations_by_hand(tmp_path):
    """3 rounds of 7 examples in 2 epochs of 10 operations, and 500 of the server."""
    make_run(tmp_path, "a", [0.1, 0.2, None, 0.4], local_epochs=2)
    record(tmp_path, "a", FLOPS)
    method = only_method(tmp_path)
    totals = [each.total for each in cost.until_each_line(method.runs[0])]
    assert totals == [1.2e6, 1.2e6 + 640, 1.2e6 + 1280, 1.2e6 + 1920]
    row = rows.row_of(method, ())
    assert [row[f"flops_{name}"] for name in (*cost.Cost._fields, "total")] == [
        *(1e6, 2e5, 420.0, 1500.0),
        1.2e6 + 1920,
    ]
    assert tables.of_cost([row]).lines[0][1:6] == [
        *("1.00 M", "200 k", "420", "1.50 k", "1.20 M")
    ]
    (line,) = figures.cost_curves([method]).axes[0].lines[:1]
    assert line.get_xdata().tolist() == [totals[0], totals[1], totals[3]]
    assert line.get_ydata().tolist() == [0.1, 0.2, 0.4]


def test_local_steps_count_whole_batches(tmp_path):
    make_run(tmp_path, "a", [0.1, 0.2], local_steps=4, batch_size=16)
    record(tmp_path, "a", FLOPS)
    assert (
        cost.until_each_line(only_method(tmp_path).runs[0])[-1].clients == 3 * 16 * 10
    )


def test_what_is_not_known_is_said(tmp_path):
    """Of an earlier version's run, and of pictures of one's own."""
    make_run(tmp_path, "old", [0.1, 0.2])
    record(tmp_path, "old")
    report.run(make_config(), tmp_path)
    (row,) = rows_of(tmp_path).values()
    assert row["flops_total"] is None and row["flops_clients"] is None
    assert tables.of_cost([row]) is None
    make_run(tmp_path, "own", [0.1, 0.3], init="synthetic")
    record(tmp_path, "own", {**FLOPS, "generation": None})
    report.run(make_config(), tmp_path)
    row = rows_of(tmp_path)["GPT-FL (FedAvg)"]
    assert row["flops_total"] is None and row["flops_clients"] == 70
    text = tables.of_cost([*rows_of(tmp_path).values()]).text(200)
    (line,) = (x for x in text.splitlines() if x.startswith("GPT-FL (FedAvg)"))
    assert " 200 k " in line and line.count("unknown") == 2
    content = {"flops": {"example": "many"}}
    artifacts.write_json(tmp_path / "federated" / "own" / "run.json", content)
    with pytest.raises(UserError, match=r"run\.json.*flops"):
        artifacts.read_flops(tmp_path / "federated" / "own")
    assert artifacts.read_flops(tmp_path / "nowhere") == {}


def test_a_table_of_starts(tmp_path, capsys):
    """Methods by starts; what is mixed in is a method of its own."""
    for init, accuracy in {"random": 0.5, "synthetic": 0.7}.items():
        make_run(tmp_path, f"a-{init}", [0.1, accuracy], init=init)
        fields = {"init": init, "synthetic_per_client": 5, "server_steps": 2}
        make_run(tmp_path, f"b-{init}", [0.1, accuracy + 0.1], **fields)
    make_run(tmp_path, "c", [0.1, 0.55], algorithm="scaffold")
    report.run(make_config(), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, x in enumerate(lines) if x.startswith("accuracy % from"))
    assert [line.split("  ")[0] for line in lines[begin + 2 : begin + 5]] == [
        *("FedAvg", "FedAvg + 5 synthetic a client + 2 server steps", "SCAFFOLD")
    ]
    assert [x.split()[-2:] for x in lines[begin + 2 : begin + 5]] == [
        *(["50.0", "70.0"], ["60.0", "80.0"], ["55.0", "-"])
    ]
    found = list(rows_of(tmp_path).values())
    axes = figures.starts(found).axes[0]
    values = axes.collections[0].get_array()
    assert values[1].tolist() == [0.6, pytest.approx(0.8)]
    assert {text.get_text() for text in axes.texts} == {
        *("50.0", "70.0", "60.0", "80.0", "55.0")
    }
    # Two rows for one cell, a single start, or another task, are no such table.
    other = found[-1] | {"task": {**found[-1]["task"], "model.name": "mlp"}}
    assert tables.of_starts([*found[:-1], other]) is None
    assert tables.of_starts([*found, found[-1]]) is None
    assert tables.of_starts([x for x in found if x["init"] == "random"]) is None
    page = (tmp_path / "report.html").read_text()
    assert "What a start is worth" in page
