import json

import numpy as np

from federated.sweep import page, results
from gptfl_jax import artifacts


def row(accuracy, **values):
    complete = accuracy is not None
    return {
        "name": "-".join(values.values()),
        "values": {f"federated.{name}": value for name, value in values.items()},
        "runs": 2,
        "done": 2 if complete else 1,
        "by_seed": [accuracy, accuracy] if complete else None,
        **({"accuracy_mean": accuracy, "accuracy_std": 0.0, "rank": 1.0}),
    }


def test_ranks_are_means_over_seeds_and_equals_share_them():
    scores = np.array([[0.9, 0.5], [0.8, 0.7], [0.8, 0.5], [0.1, 0.1]])
    # Seed 0: 1, 2.5, 2.5, 4; seed 1: 2.5, 1, 2.5, 4.
    np.testing.assert_allclose(results.mean_ranks(scores), [1.75, 1.75, 2.5, 4])
    assert results.mean_ranks(np.zeros((0, 2))).shape == (0,)


def test_heat_maps_have_the_two_largest_fields_and_one_for_each_of_the_rest():
    rows = [
        row(0.5, init="random", algorithm="fedavg", rate="1"),
        row(0.6, init="random", algorithm="fedprox", rate="0.3", mu="0.1"),
        row(0.7, init="random", algorithm="fedprox", rate="1", mu="0.1"),
        row(None, init="random", algorithm="fedprox", rate="3", mu="1"),
        row(0.9, init="synthetic", algorithm="fedprox", rate="1", mu="1"),
    ]
    fields = [f"federated.{name}" for name in ("init", "algorithm", "rate", "mu")]
    maps = page.heat_maps(rows, fields)
    assert [each.title for each in maps] == [
        "init random, algorithm fedavg",
        "init random, algorithm fedprox",
        "init synthetic, algorithm fedprox",
    ]
    second = maps[1]
    assert (second.across, second.down) == ("federated.rate", "federated.mu")
    assert second.columns == ["0.3", "1", "3"]  # as numbers
    assert second.lines == ["0.1", "1"]
    np.testing.assert_array_equal(
        second.accuracy, [[0.6, 0.7, np.nan], [np.nan, np.nan, np.nan]]
    )
    alone = page.heat_maps(rows[:1], fields[:1])
    assert alone[0].lines == [""] and alone[0].accuracy.tolist() == [[0.5]]


def test_the_table_says_what_is_missing():
    rows = [row(0.9, init="random"), row(None, init="synthetic")]
    rows[0]["accuracy_std"], rows[0]["rank"] = 0.0125, 1.5
    table = results.table(rows, ["federated.init", "federated.mu"])
    assert table.header == ["place", "init", "mu", "accuracy %", "mean rank"]
    assert table.lines == [
        ["1", "random", "-", "90.0 ± 1.2", "1.5"],
        ["-", "synthetic", "-", "1 of 2 runs done", "-"],
    ]


def test_a_former_sweep_that_says_more_is_kept(tmp_path, capsys):
    rates = [row(0.5, rate="0.1"), row(0.6, rate="0.3")]
    inits = [row(0.7, init="random")]

    def write(rows):
        """As `sweep.run`, and the files there are then: which points, which page."""
        results.keep_former(tmp_path, rows)
        artifacts.write_json(tmp_path / "sweep.json", {"points": rows})
        artifacts.write_text(tmp_path / "sweep.html", f"{len(rows)} rows")
        return {
            path.stem: (
                [each["name"] for each in json.loads(path.read_text())["points"]],
                path.with_suffix(".html").read_text(),
            )
            for path in tmp_path.glob("*.json")
        }

    first = ["0.1"], "1 rows"
    assert write(rates[:1]) == {"sweep": first}
    both = ["0.1", "0.3"], "2 rows"
    # More values, or seeds, are all that there was, and more.
    assert write(rates) == write([{**each, "runs": 3} for each in rates])
    assert capsys.readouterr().out == ""
    of_inits = ["random"], "1 rows"
    assert write(inits) == {"sweep-1": both, "sweep": of_inits}
    said = f"former sweep had other points: its page is {tmp_path}/sweep-1.html"
    assert said in capsys.readouterr().out
    kept = {"sweep-1": both, "sweep-2": of_inits}
    assert write(rates) == {**kept, "sweep": both}
    # Fewer seeds.
    assert write([{**each, "runs": 1} for each in rates]) == {
        **kept,
        **{"sweep-3": both, "sweep": both},
    }


def test_a_former_sweep_is_kept_whole_though_killed_between(tmp_path):
    artifacts.write_json(tmp_path / "sweep.json", {"points": [row(0.5, rate="0.1")]})
    artifacts.write_text(tmp_path / "sweep-1.html", "moved already")
    results.keep_former(tmp_path, [])
    assert {path.name for path in tmp_path.iterdir()} == {
        "sweep-1.html",
        "sweep-1.json",
    }
