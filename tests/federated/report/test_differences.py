"""Differences over seeds: Student's and Holm's numbers, and what is compared."""

import math

import numpy as np
import pytest

from federated import report
from federated.report import differences, runs

from ..conftest import make_config
from .conftest import in_turns, make_run, rows_of


def test_paired_t_test_by_hand():
    # Mean 2, deviation 1, t = 2 sqrt(3). With 2 degrees of freedom the distribution is
    # 1/2 + t / (2 sqrt(2 + t^2)), and its quantile at 0.975 is 4.30265.
    found = differences.paired(np.array([1.0, 2.0, 3.0]))
    assert found.mean == 2
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    # With one it is Cauchy's: mean 1, t = 1 / 2, p = 1 - 2 atan(t) / pi.
    found = differences.paired(np.array([3.0, -1.0]))
    assert found.p == pytest.approx(1 - 2 * math.atan(0.5) / math.pi)
    # The sign of all differences turns the interval, and leaves p.
    turned = differences.paired(np.array([-3.0, 1.0]))
    assert (turned.low, turned.high, turned.p) == (-found.high, -found.low, found.p)


def test_equal_differences_are_sure_and_one_seed_is_not():
    assert differences.paired(np.array([0.5, 0.5])) == (0.5, 0.5, 0.5, 0.0)
    assert differences.paired(np.zeros(4)).p == 1
    assert differences.paired(np.array([0.25])) == (0.25, None, None, None)


def test_holm_by_hand():
    # 0.01 x 3, 0.03 x 2; 0.04 x 1 is not below its smaller neighbour's.
    assert differences.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert differences.holm([0.5, 0.9]) == [1, 1]
    assert differences.holm([]) == []


@pytest.mark.usefixtures("quick_pictures")
def test_a_start_is_compared_with_none(workdir, capsys):
    # A third seed that only one of them has counts for neither.
    make_run(workdir, "gptfl-s2", [0.1] * 4 + [0.2], seed=2, init="synthetic")
    report.run(make_config(), workdir)
    rows = rows_of(workdir)
    assert rows["Synthetic only"]["difference"] is None
    assert rows["FedAvg from scratch"]["difference"] is None
    found = rows["GPT-FL (FedAvg)"]["difference"]
    # 0.97 - 0.96 and 0.99 - 0.92: mean 0.04, deviation 0.03 sqrt(2), t = 4 / 3.
    assert found["to"] == "FedAvg from scratch" and found["seeds"] == [0, 1]
    assert found["mean"] == pytest.approx(0.04)
    assert found["p"] == pytest.approx(1 - 2 * math.atan(4 / 3) / math.pi)
    assert found["p_holm"] == found["p"]
    # 12.7062 is the quantile of Cauchy's at 0.975.
    assert found["high"] == pytest.approx(0.04 + 12.70620 * 0.03, rel=1e-5)
    out = capsys.readouterr().out
    assert "GPT-FL (FedAvg)  FedAvg from scratch    +4.0  −34.1 to +42.1  0.410" in out
    assert "was chosen by these numbers" not in (workdir / "report.html").read_text()


def test_each_setting_is_compared_within_itself_whatever_its_rates(tmp_path):
    for alpha, accuracy in ((0.1, 0.5), (0.5, 0.7)):
        options = {"partition": "dirichlet", "partition_options": {"alpha": alpha}}
        make_run(tmp_path, f"a{alpha}", [0.1, accuracy], **options)
        options |= {"init": "synthetic", "client_learning_rate": 0.37}
        make_run(tmp_path, f"b{alpha}", [0.1, 0.8], **options)
    methods = runs.methods_of(runs.load_runs(tmp_path))
    found = differences.of_methods(methods)
    assert {
        (name, row["to"], round(row["mean"], 6)) for name, row in found.items()
    } == {
        (f"GPT-FL (FedAvg) (alpha {alpha})", f"FedAvg from scratch (alpha {alpha})", by)
        for alpha, by in ((0.1, 0.3), (0.5, 0.1))
    }
    assert all(row["p"] is None and row["p_holm"] is None for row in found.values())


def test_no_methods_of_different_clients_are_compared(tmp_path):
    for name, accuracy, options in (
        ("a", 0.5, {"partition": "iid"}),
        ("b", 0.7, {"partition": "iid", "algorithm": "fedprox"}),
        ("c", 0.9, {"num_clients": 20}),
        ("d", 0.8, {"num_clients": 20, "algorithm": "fedopt"}),
        ("e", 0.8, {"client_test_fraction": 0.2}),
    ):
        make_run(tmp_path, name, [0.1, accuracy], **options)
    found = differences.of_methods(runs.methods_of(runs.load_runs(tmp_path)))
    assert {
        (name.split()[0], row["to"].split()[0], round(row["mean"], 6))
        for name, row in found.items()
    } == {
        ("FedAvg", "FedProx", -0.2),
        ("FedOpt", "FedAvg", -0.1),
    }


def test_of_turns_those_that_both_have_count(tmp_path):
    in_turns(
        tmp_path,
        {"anna": ([0.1, 0.5], [0.1, 0.6]), "bert": ([0.1, 0.9], [0.1, 0.9])},
    )
    in_turns(tmp_path, {"anna": ([0.1, 0.7], [0.1, 0.6])}, init="synthetic")
    (row,) = differences.of_methods(runs.methods_of(runs.load_runs(tmp_path))).values()
    assert row["seeds"] == [0, 1] and row["mean"] == pytest.approx(0.1)


@pytest.mark.usefixtures("quick_pictures")
def test_methods_from_one_start_are_compared_with_the_best(tmp_path):
    make_run(tmp_path, "a", [0.1, 0.5])
    make_run(tmp_path, "b", [0.1, 0.7], algorithm="fedprox")
    make_run(tmp_path, "c", [0.1, 0.4], algorithm="fedopt")
    report.run(make_config(), tmp_path)
    rows = rows_of(tmp_path)
    assert rows["FedProx from scratch"]["difference"] is None
    assert rows["FedAvg from scratch"]["difference"]["mean"] == pytest.approx(-0.2)
    assert rows["FedOpt from scratch"]["difference"]["mean"] == pytest.approx(-0.3)
    assert "was chosen by these numbers" in (tmp_path / "report.html").read_text()


def test_methods_are_compared_in_the_turns_of_both(tmp_path):
    """They agree in the turn that both have done; one has done a harder one as well."""
    both = {"anna": ([0.1, 0.5], [0.1, 0.6]), "bert": ([0.2, 0.9], [0.2, 0.8])}
    in_turns(tmp_path, both)
    in_turns(tmp_path, {"bert": both["bert"]}, init="synthetic")
    methods = runs.methods_of(runs.load_runs(tmp_path))
    (row,) = differences.of_methods(methods).values()
    assert row["to"] == "FedAvg from scratch" and row["seeds"] == [0, 1]
    assert (row["mean"], row["p"]) == (0, 1)


def test_turns_of_a_seed_are_one_difference(tmp_path):
    of = {"anna": ([0.1, 0.5], [0.1, 0.6]), "bert": ([0.2, 0.9], [0.2, 0.8])}
    in_turns(tmp_path, of)
    # Seed 0 gains 0.1 and 0.02, hence 0.06; seed 1 loses 0.02 and gains 0.06: 0.02.
    of = {"anna": ([0.1, 0.6], [0.1, 0.58]), "bert": ([0.2, 0.92], [0.2, 0.86])}
    in_turns(tmp_path, of, init="synthetic")
    methods = runs.methods_of(runs.load_runs(tmp_path))
    (row,) = differences.of_methods(methods).values()
    assert row["mean"] == pytest.approx(0.04) and row["seeds"] == [0, 1]
    assert row["p"] == pytest.approx(1 - 2 * math.atan(2) / math.pi)
