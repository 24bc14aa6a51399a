"""The page of all modalities, of runs made here."""

import pathlib

import jax
import pytest

from benchmarks import results

from .federated.report.conftest import make_run


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Two settings of one experiment: FedAvg in two seeds, and FedProx in one."""
    monkeypatch.chdir(tmp_path)
    command = ["-m", "federated.compare", "--config=configs/digits.py"]
    monkeypatch.setattr("sys.orig_argv", ["python", *command])
    folder = pathlib.Path("runs/digits")
    few = {"partition": "iid", "num_clients": 6}
    for name, init, seed, last, options in (
        ("a0", "random", 0, 0.80, {}),
        ("a1", "random", 1, 0.84, {}),
        ("b0", "synthetic", 0, 0.90, {}),
        ("b1", "synthetic", 1, 0.96, {}),
        ("c0", "random", 0, 0.70, few),
        ("d0", "synthetic", 0, 0.75, few | {"algorithm": "fedprox"}),
    ):
        first = 0.6 if init == "synthetic" else 0.1
        make_run(folder, name, [first, 0.85, last], seed=seed, init=init, **options)
    return folder


def test_the_page_has_what_the_runs_recorded(finished, monkeypatch):
    pathlib.Path("README.md").write_text(
        "before\n\n<!-- results: begin -->\nold\n<!-- results: end -->\n\nafter\n"
    )
    monkeypatch.setattr(results, "EXPERIMENTS", results.EXPERIMENTS[:1])
    results.main([])
    page = pathlib.Path("docs/results.md").read_text()
    short = (
        "| data | clients | algorithm | synthetic only | from scratch | GPT-FL |\n"
        "| --- | --- | --- | ---: | ---: | ---: |\n"
        "| Handwritten digits | 12 clients with label skew Dirichlet(0.1) | FedAvg | "
        "60.0 | 82.0 ± 2.8 | 93.0 ± 4.2 |\n"
        "| Handwritten digits | 6 clients (IID) | FedAvg | 60.0 | 70.0 | - |\n"
        "| Handwritten digits | 6 clients (IID) | FedProx | 60.0 | - | 75.0 |\n"
    )
    assert short in page
    assert pathlib.Path("README.md").read_text() == (
        f"before\n\n<!-- results: begin -->\n{short}<!-- results: end -->\n\nafter\n"
    )
    # Targets of configs/digits.py: 90 and 95 %; GPT-FL's second seed alone reached 95.
    (line,) = [x for x in page.splitlines() if x.startswith("| GPT-FL (FedAvg)")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:6] == ["0.1", "-", "2", "93.0 ± 4.2", "83.0 ± 4.2"]
    assert cells[6:8] == ["2", "> 2 (1 of 2 did)"]
    assert "12 clients with label skew Dirichlet(0.1), 3 of them a round" in page
    assert "2 rounds, 2 seeds." in page and "2 rounds, 1 seed." in page
    assert "```\npython -m federated.compare --config=configs/digits.py\n```" in page
    assert f"jax {jax.__version__}, " in page


def test_what_is_missing_or_unfinished_is_told(finished):
    with pytest.raises(SystemExit, match="2"):
        results.main(["letters"])
    with pytest.raises(SystemExit, match="runs/fsdd: holds no federated run; `make de"):
        results.main(["fsdd"])
    lines = (finished / "federated/b1/metrics.jsonl").read_text().splitlines()
    (finished / "federated/b1/metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(SystemExit, match="federated/b1: 1 of 2 rounds .*`make demo` g"):
        results.main(["digits"])
    assert not pathlib.Path("docs/results.md").exists()
    # Of a part of the experiments the README is left as it is.
    (finished / "federated/b1/metrics.jsonl").write_text("\n".join(lines) + "\n")
    results.main(["digits"])
    assert pathlib.Path("docs/results.md").exists()
    assert not pathlib.Path("README.md").exists()
