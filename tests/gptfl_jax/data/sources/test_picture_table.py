"""Pictures with a row each in a table, in all its forms."""

import csv
import io
import json

import numpy as np
import PIL.Image
import pytest

from gptfl_jax.data import partition, sources, tables
from gptfl_jax.errors import UserError

from ..conftest import save_picture

HEAD = ("file_name", "label", "client", "split")
ROWS = [
    (f"pictures/{i}.png", ("cat", "dog")[i % 2], f"user {i % 3}", ("0", "2")[i // 8])
    for i in range(12)
]


def write_pictures(folder):
    for i in range(12):
        save_picture(folder / f"pictures/{i}.png", np.full((4, 4, 3), 10 * i))


def write_csv(folder, rows=ROWS, head=HEAD):
    write_pictures(folder)
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return "metadata.csv"


def write_lines(folder):
    write_pictures(folder)
    lines = [json.dumps(dict(zip(HEAD, row, strict=True))) for row in ROWS]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return "metadata.jsonl"


def write_parquet(folder):
    """In two files, with the pictures in them."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in range(2):
        rows = []
        for row in ROWS[6 * part : 6 * part + 6]:
            file = io.BytesIO()
            grey = 10 * ROWS.index(row)
            PIL.Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(file, "PNG")
            picture = {"bytes": file.getvalue(), "path": None}
            rows.append(dict(zip(HEAD, (picture, *row[1:]), strict=True)))
        table = pyarrow.Table.from_pylist(rows)
        (folder / "data").mkdir(exist_ok=True)
        path = folder / "data" / f"train-0000{part}-of-00002.parquet"
        parquet.write_table(table, path)
    return "data/train-*.parquet"


@pytest.mark.parametrize("write", [write_csv, write_lines, write_parquet])
def test_tables_of_all_forms_give_the_same(write, tmp_path):
    options = {
        "table": write(tmp_path),
        "client_column": "client",
        "split_column": "split",
    }
    train, test = sources.load("picture_table", str(tmp_path), **options)[:2]
    assert train.class_names == ("cat", "dog")
    names = sources.class_names("picture_table", str(tmp_path), **options)
    assert names == train.class_names
    for data, first, count in ((train, 0, 8), (test, 8, 4)):
        assert data.inputs.shape == (count, 4, 4, 3)
        assert data.inputs[:, 0, 0, 0].tolist() == [
            10 * i for i in range(first, first + count)
        ]
        assert data.labels.tolist() == [i % 2 for i in range(count)]
    owner, number = partition.partition("natural", train, 99, 0)
    assert (owner.tolist(), number) == ([0, 1, 2, 0, 1, 2, 0, 1], 3)


def test_a_test_set_is_drawn_of_each_client_or_of_clients(tmp_path):
    write_csv(tmp_path)
    options = {"client_column": "client", "test_fraction": 0.25}
    train, test = sources.load("picture_table", str(tmp_path), **options)[:2]
    assert sorted(test.clients) == ["user 0", "user 1", "user 2"]
    assert len(train.clients) == 9
    options |= {"test_clients": True}
    train, test = sources.load("picture_table", str(tmp_path), **options)[:2]
    assert set(test.clients).isdisjoint(train.clients) and len(test.labels) == 4

    train, test = sources.load("picture_table", str(tmp_path), test_fraction=0.5)[:2]
    assert train.clients is None
    assert np.bincount(test.labels).tolist() == [3, 3]
    with pytest.raises(UserError, match="no natural clients"):
        partition.partition("natural", train, 2, 0)


def test_classes_by_name_number_and_known_label_set(tmp_path):
    def classes(cells, **options):
        rows = [(ROWS[i][0], cells[i % len(cells)], "a", "0") for i in range(12)]
        write_csv(tmp_path, rows)
        options |= {"test_fraction": 0.5}
        source = sources.load("picture_table", str(tmp_path), **options)
        data = source.train
        found = {}
        for grey, label in zip(data.inputs[:, 0, 0, 0], data.labels, strict=True):
            found[cells[grey // 10 % len(cells)]] = data.class_names[label]
        return source.train.class_names, found

    names, found = classes(["10", "9"])
    assert names == ("9", "10") and found == {"9": "9", "10": "10"}
    names, found = classes(["dog", "cat", "emu"], classes=("emu", "dog"))
    assert names == ("emu", "dog") and found == {"emu": "emu", "dog": "dog"}
    chosen = ("capital B", "small a")
    for cells in (["11", "36"], ["Capital_B", "small-a"]):
        names, found = classes(cells, labels="femnist", classes=chosen)
        assert names == chosen and tuple(found[cell] for cell in cells) == chosen
    assert sources.known_labels("picture_table", labels="femnist") == "femnist"
    with pytest.raises(UserError, match="the table's '62' is none of its 62"):
        classes(["62"], labels="femnist")
    with pytest.raises(UserError, match="no picture of the class 'digit 0'"):
        classes(["1", "2"], labels="femnist")


def test_what_a_table_lacks_is_named(tmp_path):
    def fails(message, **options):
        with pytest.raises(UserError, match=message):
            sources.load("picture_table", str(tmp_path), **options)

    fails(r"options.table = 'metadata.csv': .* has no such file")
    write_csv(tmp_path)
    fails("has no column owner", client_column="owner")
    fails("name their column in", test_clients=True)
    fails("name no training or no test set", split_column="client")
    fails("is no table: give a file that ends in", table="pictures/0.png")
    fails("takes a path seen from config.data.folder", table=str(tmp_path / "a.csv"))
    for name in ("../a.png", "/etc/passwd", ""):
        write_csv(tmp_path, [(name, "cat", "a", "0")])
        fails("line 2: file_name = .*: is no path below the table's folder")


def test_a_row_without_its_picture_is_reported_and_left_out(tmp_path, capsys):
    write_csv(tmp_path, [*ROWS, ("pictures/99.png", "cat", "a", "0")])
    source = sources.load("picture_table", str(tmp_path))
    assert len(source.train.labels) + len(source.test.labels) == 12
    assert "12 real pictures loaded; 1 left out" in capsys.readouterr().out


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'gptfl-jax\[parquet\]'"):
        tables.read_any(tmp_path / "a.parquet", {})
