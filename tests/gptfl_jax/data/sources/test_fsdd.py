import hashlib
import os
import pathlib

import numpy as np
import pytest

from gptfl_jax.data import datasets, sources
from gptfl_jax.data.sources.fsdd import _RELEASE
from gptfl_jax.errors import UserError


def test_fsdd_splits_by_take_or_speaker(fsdd):
    options = {"features": {"num_mels": 4}}
    source = sources.load("fsdd", str(fsdd), **options)
    assert source.train.labels.tolist() == [0, 1, 3, 7]
    assert source.train.clients.tolist() == ["bert", "cleo", "anna", "bert"]
    assert source.test.labels.tolist() == [3, 7]
    assert source.train.class_names == tuple("0123456789")
    assert source.train.inputs[0].shape == (4, 17, 4) and source.mean == ()
    # At 8 kHz a frame every 10 ms: 1 + samples // 80.
    assert source.train.inputs[1].tolist() == [17, 14, 11, 12]
    inside = sources.load("fsdd", str(fsdd / "recordings"), **options)
    np.testing.assert_array_equal(inside.test.inputs[0], source.test.inputs[0])

    held = sources.load("fsdd", str(fsdd), test_speakers=("bert",), **options)
    assert held.test.labels.tolist() == [0, 7, 7]
    assert set(held.test.clients) == {"bert"}
    assert set(held.train.clients) == {"anna", "cleo"}
    two = sources.load(
        "fsdd", str(fsdd), speakers=("anna", "bert"), test_speakers="bert", **options
    )
    assert set(two.train.clients) == {"anna"} and set(two.test.clients) == {"bert"}
    with pytest.raises(UserError, match="test_speakers: .* has no cleo; it has anna"):
        sources.load("fsdd", str(fsdd), speakers=("anna",), test_speakers=("cleo",))
    with pytest.raises(UserError, match="has no dora; it has anna, bert, cleo"):
        sources.load("fsdd", str(fsdd), test_speakers=("dora",))
    rows = np.asarray([False, True, True, False])
    some = datasets.select(source.train, rows)
    np.testing.assert_array_equal(some.inputs[0], source.train.inputs[0][rows])
    assert some.inputs[1].tolist() == [14, 11] and some.labels.tolist() == [1, 3]


def test_the_real_fsdd():
    if "GPTFL_DATA_DIR" not in os.environ:
        pytest.skip("GPTFL_DATA_DIR is not set")
    folder = pathlib.Path(os.environ["GPTFL_DATA_DIR"]) / "fsdd"
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.glob("recordings/*.wav"))
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == _RELEASE.digest
    source = sources.load("fsdd", str(folder), features={"hop": 400, "num_mels": 8})
    assert np.bincount(source.train.labels).tolist() == [270] * 10
    assert np.bincount(source.test.labels).tolist() == [30] * 10
    speakers = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert np.unique(source.train.clients).tolist() == speakers
    features, lengths = source.train.inputs
    assert features.shape == (2700, 17, 8) and lengths.min() >= 3
    real = np.arange(17) < lengths[:, None]
    # Standardised: over time each band has mean 0 and deviation 1.
    np.testing.assert_allclose(features.sum(1), 0, atol=1e-3)
    square = np.where(real[..., None], features, 0) ** 2
    np.testing.assert_allclose(square.sum(1) / lengths[:, None], 1, atol=0.01)
