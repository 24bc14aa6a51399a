import numpy as np
import pytest
from ml_collections import ConfigDict

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError

from ..conftest import SMALL, by_config, check_rows, write


def test_urbansound8k(tmp_path):
    root = tmp_path / "UrbanSound8K"
    rows = (
        ("100-3-0-0.wav", 100, 0.0, 0.1, 1, 1, 3, "dog_bark"),
        ("100-3-0-1.wav", 100, 1.0, 1.1, 1, 1, 3, "dog_bark"),
        ("7-9-1-0.wav", 7, 5.5, 5.55, 2, 4, 9, "street_music"),
        ("8-0-1-0.wav", 8, 0.0, 0.1, 1, 10, 0, "air_conditioner"),
    )
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    (root / "metadata").mkdir(parents=True)
    (root / "metadata" / "UrbanSound8K.csv").write_text(
        header + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    files = [root / "audio" / f"fold{row[5]}" / row[0] for row in rows]
    for seed, file in enumerate(files):
        write(file, seed)
    source = sources.load("urbansound8k", str(tmp_path), features=SMALL)
    check_rows(source.train, files[:2])  # the third is shorter than 0.1 s
    check_rows(source.test, files[3:])
    check_rows(by_config("urbansound8k", tmp_path).test, files[3:])
    every = sources.load(
        "urbansound8k", str(root), features=SMALL, min_duration_s=0, test_folds=[10]
    )
    check_rows(every.train, files[:3])
    # As a config hands them over.
    config = ConfigDict({"features": SMALL, "test_folds": (10,), "min_duration_s": 0})
    same = sources.load("urbansound8k", str(root), **config)
    np.testing.assert_array_equal(same.train.inputs[0], every.train.inputs[0])
    assert every.train.labels.tolist() == [3, 3, 9]
    for (*_, number, name), label in zip(rows, [3, 3, 9, 0], strict=True):
        assert number == label and every.train.class_names[label] == name
    assert every.train.clients.tolist() == ["100", "100", "7"]
    with pytest.raises(UserError, match="not UrbanSound8K; get it from https://zenodo"):
        sources.load("urbansound8k", str(tmp_path / "audio"))
