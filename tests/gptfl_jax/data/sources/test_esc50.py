import functools

import pytest

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError
from gptfl_jax.labels import label_set

from ..conftest import SMALL, by_config, check_rows, write


def test_esc50(tmp_path):
    root = tmp_path / "ESC-50-master"
    rows = (
        ("1-100-A-0.wav", 1, 0, "dog", "True", 100, "A"),
        ("1-100-B-0.wav", 1, 0, "dog", "True", 100, "B"),
        ("2-7-A-49.wav", 2, 49, "hand_saw", "False", 7, "A"),
        ("5-9-A-1.wav", 5, 1, "rooster", "True", 9, "A"),
    )
    header = "filename,fold,target,category,esc10,src_file,take\n"
    table = header + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "esc50.csv").write_text(table)
    files = [root / "audio" / row[0] for row in rows]
    for seed, file in enumerate(files):
        write(file, seed, 4410, rate=44_100)
    source = sources.load("esc50", str(tmp_path), features=SMALL)
    check_rows(source.train, files[:3])
    check_rows(source.test, files[3:])
    # Labels are in the order of the release's `target`.
    assert source.train.labels.tolist() == [0, 0, 2]
    assert source.test.labels.tolist() == [1]
    assert source.train.class_names == ("dog", "rooster", "hand_saw")
    assert source.train.clients.tolist() == ["100", "100", "7"]
    check_rows(by_config("esc50", tmp_path).test, files[3:])
    folds = sources.load("esc50", str(root), features=SMALL, test_folds=(1, 2))
    check_rows(folds.train, files[3:])
    with pytest.raises(UserError, match=r"test folds are of 1 to 5: \(6,\)"):
        sources.load("esc50", str(root), test_folds=(6,))
    (root / "meta" / "esc50.csv").write_text("filename,fold\na.wav,1\n")
    with pytest.raises(
        UserError, match="esc50.csv: has no column category, src_file, t"
    ):
        sources.load("esc50", str(root))
    (root / "meta" / "esc50.csv").write_text(table)
    files[0].unlink()
    for name in ("../../x.wav", "/x.wav", "a/x.wav", ".."):
        changed = table.replace("1-100-A-0.wav", name)
        (root / "meta/esc50.csv").write_text(changed)
        with pytest.raises(UserError, match=rf"line 2: filename = '{name}': is no f"):
            sources.load("esc50", str(root))
    (root / "meta/esc50.csv").write_text(table)
    with pytest.raises(UserError, match="1-100-A-0.wav: cannot be read"):
        sources.load("esc50", str(root), features=SMALL)


def write_table(folder, *rows):
    (folder / "meta").mkdir(exist_ok=True)
    path = folder / "meta" / "esc50.csv"
    lines = (f"x.wav,1,{target},{name},False,1,A" for target, name in rows)
    header = "filename,fold,target,category,esc10,src_file,take"
    path.write_text("\n".join([header, *lines]))


def test_class_names_are_the_tables_by_target(tmp_path):
    """Without a clip; without the table they are the release's."""
    names = functools.partial(sources.class_names, "esc50", str(tmp_path))
    known = label_set("esc50").classes
    assert names() == sources.class_names("esc50") == known
    write_table(tmp_path, *((i, known[i]) for i in reversed(range(50))))
    assert names() == known
    write_table(tmp_path, (7, "kettle"), (2, "dog"), (7, "kettle"))
    assert names() == ("dog", "kettle")
    for rows, error in (
        (((2, "dog"), (2, "cat")), "line 3: category = 'cat': .* target 2 'dog'"),
        (((2, "dog"), (3, "dog")), "line 3: target = 3: rows .* 'dog' target 2"),
        (((2, "dog"), (3, "")), "line 3: category = '': is missing"),
        (((2, "dog"), (3, "c\tt")), r"line 3: category = .*: takes words"),
        ((("-1", "dog"),), "line 2: target = '-1': is no whole number of 0"),
    ):
        write_table(tmp_path, *rows)
        with pytest.raises(UserError, match=f"meta/esc50.csv.*{error}"):
            names()
