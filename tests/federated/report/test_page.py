"""report.html: what it says, and that it stands alone."""

import base64
import json
import re

import pytest

from federated import report
from federated.report import page, runs
from gptfl_jax import artifacts, choices, families

from ..conftest import make_config
from .conftest import make_run


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
    config = make_config()
    options = {"alpha": 0.5, "min_examples": 5, "shards_per_client": 2}
    options["file"] = "data/map.json"
    known = choices.options(
        families.PARTITION, choices.find(families.PARTITION, partition)
    )
    fields = config.federated.to_dict() | {
        "partition": partition,
        "partition_options": {k: v for k, v in options.items() if k in known},
    }
    run = runs.Run("a", {"federated": fields, "seed": 0}, [])
    method = runs.Method("FedAvg", "fedavg", "random", (run,))
    assert words in page.setting([method], config)
    fields["client_test_fraction"] = 0.2
    assert "who hold out 20% of their examples, 3" in page.setting([method], config)


def test_an_own_partition_is_told_by_name_and_options():
    options = {"pairs": 3, "skew": 0.5}
    fields = make_config().federated.to_dict() | {
        "partition": "parts/of_my_own.py",
        "partition_options": options,
    }
    run = runs.Run("a", {"federated": fields, "seed": 0}, [])
    method = runs.Method("FedAvg", "fedavg", "random", (run,))
    said = page.setting([method], make_config())
    assert ": 12 clients (of_my_own, pairs 3, skew 0.5), 3 of them" in said


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
    assert "client holds and examples of the clients&#39; data.</p>" in html


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
