"""report.html: what it says, and that it stands alone."""

import base64
import json
import re

import pytest

from federated import report
from federated.report import page, rows, runs
from gptfl_jax import artifacts, choices, families

from ..conftest import make_config
from .conftest import make_run


def setting(**federated):
    """Of one method, in words."""
    config = make_config().to_dict()
    config["federated"] |= federated
    method = runs.Method("FedAvg", "fedavg", "random", (runs.Run("a", config, []),))
    (said,) = page.settings([method])
    return said


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ("natural", ": natural clients, 3 of them"),
        ("from_file", ": clients as map.json deals them, 3 of them"),
        ("iid", ": 12 clients (IID), 3 of them"),
        ("dirichlet", ": 12 clients with label skew Dirichlet(0.5), 3 of them"),
        (
            "dirichlet_balanced",
            ": 12 clients of similar size with label skew Dirichlet(0.5), 3",
        ),
        ("shards", ": 12 clients with 2 shards of one label each, 3 of them"),
        ("quantity_skew", ": 12 clients with sizes drawn from Dirichlet(0.5), 3"),
    ],
)
def test_setting_in_words(partition, words):
    options = {"alpha": 0.5, "min_examples": 5, "shards_per_client": 2}
    options["file"] = "data/map.json"
    known = choices.options(
        families.PARTITION, choices.find(families.PARTITION, partition)
    )
    fields = {
        "partition": partition,
        "partition_options": {k: v for k, v in options.items() if k in known},
    }
    assert words in setting(**fields)
    fields["client_test_fraction"] = 0.2
    assert "who hold out 20% of their examples, 3" in setting(**fields)


def test_an_own_partition_is_told_by_name_and_options():
    options = {"pairs": 3, "skew": 0.5}
    said = setting(partition="parts/of_my_own.py", partition_options=options)
    assert ": 12 clients (of_my_own, pairs 3, skew 0.5), 3 of them" in said


def test_methods_of_several_settings_have_each_its_own(tmp_path):
    make_run(tmp_path, "a", [0.1, 0.5], partition="iid")
    make_run(tmp_path, "b", [0.1, 0.9], algorithm="fedprox", num_clients=20)
    for algorithm in ("fedavg", "fedavgm", "scaffold", "moon"):
        mean = {"algorithm": algorithm, "init": "synthetic"}
        make_run(tmp_path, algorithm, [0.1, 0.5, 0.7], partition="iid", **mean)
    make_run(
        *(tmp_path, "c", [0.1, 0.5, 0.6]),
        partition="iid",
        aggregation="trimmed_mean",
        aggregation_options={"fraction": 0.2},
    )
    methods = runs.methods_of(runs.load_runs(tmp_path))
    ending = "3 of them a round, each for 1 epoch in batches of 16; "
    iid = f"sklearn_digits: 12 clients (IID), {ending}"
    skewed = f"sklearn_digits: 20 clients with label skew Dirichlet(0.1), {ending}"
    trimmed = "aggregation trimmed_mean, fraction 0.2"
    assert page.settings(methods) == [
        f"{iid}1 round, 1 seed; aggregation mean: {methods[0].name}.",
        f"{iid}2 rounds, 1 seed; {trimmed}: {methods[1].name}.",
        f"{skewed}1 round, 1 seed; aggregation mean: {methods[2].name}.",
        f"{iid}2 rounds, 1 seed; aggregation mean: all others.",
    ]


def test_the_picture_of_the_clients_says_whose_they_are(workdir, quick_pictures):
    report.run(make_config(), workdir)
    html = (workdir / "report.html").read_text()
    assert "What clients hold for training (seed 0)." in html
    make_run(workdir, "iid", [0.1, 0.5], partition="iid", algorithm="fedprox")
    report.run(make_config(), workdir)
    html = (workdir / "report.html").read_text()
    assert "(seed 0, FedAvg from scratch (partition dirichlet))." in html


def test_the_headline_compares_within_a_task(tmp_path):
    make_run(tmp_path, "a", [0.1, 0.9], partition="iid")
    make_run(tmp_path, "b", [0.1, 0.5])
    make_run(tmp_path, "c", [0.6, 0.7], init="synthetic")
    methods = runs.methods_of(runs.load_runs(tmp_path))
    said = page.headline([rows.row_of(method, ()) for method in methods])
    assert said == (
        "GPT-FL (FedAvg) (partition dirichlet): 70.0 % test accuracy after 1 round. "
        "Against FedAvg from scratch (partition dirichlet): 50.0 %."
    )


def test_page_is_self_contained(workdir, quick_paper):
    report.run(make_config(), workdir)
    html = (workdir / "report.html").read_text()
    assert 'name="viewport"' in html
    assert not re.search(r'(?:src|href)="(?!data:)', html) and "@import" not in html
    pictures = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)
    assert len(pictures) == 4  # accuracy, loss, diversity, partition
    assert all(b"</svg>" in base64.b64decode(picture) for picture in pictures)
    assert "FedAvg from scratch" in html and "94.0 ± 2.8" in html
    record = json.loads((workdir / "federated/gptfl-s0/run.json").read_text())
    assert record["versions"]["jax"] in html
    # The same numbers make the same file.
    report.run(make_config(), workdir)
    assert (workdir / "report.html").read_text() == html


def test_commands_are_told_but_not_those_of_notebooks(workdir):
    record = json.loads((workdir / "federated/scratch-s0/run.json").read_text())
    commands = {
        "scratch-s0": ["-m", "federated.simulate", "--config=a b.py", "--workdir=w"],
        "scratch-s1": ["-m", "ipykernel_launcher", "-f", "/home/me/kernel.json"],
    }
    for run, arguments in commands.items():
        content = record | {"argv": ["/usr/bin/python3", *arguments]}
        artifacts.write_json(workdir / f"federated/{run}/run.json", content)
    found = runs.load_runs(workdir, list(commands))
    assert page.provenance(workdir, found).commands == [
        "python -m federated.simulate '--config=a b.py' --workdir=w",
        "# called from Python",
    ]


def test_the_page_says_first_that_it_is_private(workdir, quick_pictures):
    report.run(make_config(), workdir)
    html = (workdir / "report.html").read_text()
    start = html[html.index("<body>") :]
    assert start.index("Do not share this page as it is") < 200
    assert "how many examples of each class every client holds. Examples of" in start
    config = make_config()
    config.report.private_examples = True
    report.run(config, workdir)
    html = (workdir / "report.html").read_text()
    # Without synthetic examples there are no real ones beside them.
    assert "machine and how many examples of each class every client holds.</p>" in html


def test_the_page_can_be_read_aloud_and_in_the_dark(workdir, quick_pictures):
    report.run(make_config(), workdir)
    html = (workdir / "report.html").read_text()
    assert "@media (prefers-color-scheme: dark)" in html
    # Synthetic only, and the methods, in two tables; one difference.
    assert html.count('<th scope="row"') == 2 * 3 + 1
    captions = re.findall(r'<caption class="unseen">(.*?)</caption>', html)
    assert len(captions) == html.count("<table>") == 3
    alts = re.findall(r'<img class="drawn" alt="(.*?)"', html)
    assert alts[0] == (
        "Test accuracy over rounds. After the last round: Synthetic only 75.0 %, "
        "FedAvg from scratch 94.0 %, GPT-FL (FedAvg) 98.0 %."
    )
    assert len(alts) == 4 and all(alt[0].isupper() for alt in alts)


def test_names_are_text_and_not_html(workdir, quick_pictures):
    make_run(workdir, "odd", [0.1, 0.5], init="w/<b>&'\"")
    report.run(make_config(), workdir)
    html = (workdir / "report.html").read_text()
    assert "<b>" not in html
    assert "FedAvg from w/&lt;b&gt;&amp;&#39;&#34;" in html
