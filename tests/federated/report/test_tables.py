"""The tables as text."""

import pytest

from federated import report
from federated.report import tables

from ..conftest import make_config

pytestmark = pytest.mark.usefixtures("quick_pictures")


def test_table_is_aligned(workdir, capsys):
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
    (head,) = [x for x in capsys.readouterr().out.splitlines() if "diversity" in x]
    assert head.split() == [
        *("method", "client", "rate", "diversity", "MB", "up", "MB", "down", "dropped")
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "-"), (0, "0"), (0.0045, "0.00450"), (0.5, "0.500"), (1.1, "1.10")),
        *((12.0, "12.0"), (122.96, "123"), (999.6, "1,000"), (1234567.0, "1,234,567")),
    ],
)
def test_numbers_have_three_figures(value, text):
    assert tables.significant(value) == text
