"""The tables as text."""

import pytest

from federated import report
from federated.report import tables

from ..conftest import make_config
from .conftest import make_run, rows_of

pytestmark = pytest.mark.usefixtures("quick_pictures")


def test_table_is_aligned(workdir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    report.run(make_config(), workdir)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "method"
    table = lines[2:5]
    assert table[1].startswith("FedAvg from scratch")
    assert "94.0 ± 2.8" in table[1] and "> 4 (1 of 2 did)" in table[1]
    assert table[2].split()[-4:] == ["2", "2", "0.00300", "0.00300"]
    # Every column but the first ends at the same place as its heading.
    end = lines[0].index("accuracy %") + len("accuracy %")
    assert all(line[end - 1] != " " and line[end] == " " for line in table)
    assert f"report   {workdir / 'report.html'}" in lines


def test_table_of_clients_has_no_empty_columns(workdir, capsys):
    report.run(make_config(), workdir)
    assert tables.of_clients([*rows_of(workdir).values()]).header == [
        *("method", "client rate", "diversity", "MB up", "MB down", "dropped")
    ]
    # On a terminal it would push the accuracies out of sight.
    assert "diversity" not in capsys.readouterr().out


def test_what_does_not_fit_follows_below():
    header = ["method", "accuracy %", "nothing", "rounds to 90 %", "MB"]
    lines = [["FedAvg", "50.0", "-", "12", "-"], ["FedProx", "60.0", "-", "-", "3.1"]]
    table = tables.Table(header, lines)
    assert table.text(40) == (
        "method   accuracy %  rounds to 90 %   MB\n"
        "----------------------------------------\n"
        "FedAvg         50.0              12    -\n"
        "FedProx        60.0               -  3.1"
    )
    assert table.text(39) == (
        "method   accuracy %  rounds to 90 %\n"
        "-----------------------------------\n"
        "FedAvg         50.0              12\n"
        "FedProx        60.0               -\n"
        "\n"
        "method    MB\n"
        "------------\n"
        "FedAvg     -\n"
        "FedProx  3.1"
    )
    # No narrower than a column beside the names.
    parts = table.text(5).split("\n\n")
    assert [part.split("\n")[0].split()[1] for part in parts] == [
        *("accuracy", "rounds", "MB")
    ]


def test_what_is_printed_fits_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for seed in (0, 1):
        for init in ("random", "synthetic"):
            run = {"measured": True, "init": init, "client_learning_rate": 0.05}
            make_run(tmp_path, f"a-{init}-{seed}", [0.1, 0.5, 0.7], seed, **run)
            run |= {"algorithm": "fedopt", "num_clients": 20}
            make_run(tmp_path, f"b-{init}-{seed}", [0.1, 0.5, 0.7], seed, **run)
    report.run(make_config(), tmp_path)
    printed, _, _ = capsys.readouterr().out.partition("\nreport ")
    assert max(map(len, printed.splitlines())) <= 80
    assert "(num_clients 20)" in printed and "20 clients with label skew" in printed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "-"), (0, "0"), (0.0045, "0.00450"), (0.5, "0.500"), (1.1, "1.10")),
        *((12.0, "12.0"), (122.96, "123"), (999.6, "1,000"), (1234567.0, "1,234,567")),
    ],
)
def test_numbers_have_three_figures(value, text):
    assert tables.significant(value) == text
