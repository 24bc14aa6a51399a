"""Names and layouts of released weights, on a network of two layers."""

import numpy as np
from safetensors.numpy import save_file

from gptfl_jax.released import classifiers


def test_what_a_file_calls_a_weight_and_back(tmp_path):
    kernel = np.arange(24, dtype=np.float32).reshape(1, 1, 6, 4)
    head = np.arange(16, dtype=np.float32).reshape(8, 2)
    variables = {
        "params": {"conv": {"kernel": kernel}, "classifier": {"kernel": head}},
        "batch_stats": {"bn_3": {"mean": np.ones(4, np.float32)}},
    }
    names = classifiers.Names({"fc": "classifier"}, {"classifier": "conv"})
    weights = classifiers.released_weights(variables, names)
    assert set(weights) == {"conv.weight", "fc.weight", "bn.3.running_mean"}
    # Two pixels of four channels: theirs has both pixels of a channel side by side.
    theirs = [0, 8, 2, 10, 4, 12, 6, 14]
    np.testing.assert_array_equal(weights["fc.weight"][0], theirs)
    weights["bn.3.num_batches_tracked"] = np.ones((), np.int64)
    save_file(weights, tmp_path / "x.safetensors")
    read = classifiers.read(tmp_path / "x.safetensors", names)
    assert set(read) == {"conv.weight", "classifier.weight", "bn.3.running_mean"}
    np.testing.assert_array_equal(read["classifier.weight"], head.T)
    filled, whole = classifiers.fill(variables, read, "x")
    assert whole
    np.testing.assert_array_equal(filled["params"]["conv"]["kernel"], kernel)


def test_numbers_and_single_weights_are_renamed(tmp_path):
    given = ("body.12.map.bias", "stem.extra", "body.x.map.bias", "fc.weight")
    one = np.ones(1, np.float32)
    save_file({name: one for name in given}, tmp_path / "x.safetensors")
    read = classifiers.read(
        tmp_path / "x.safetensors",
        classifiers.Names(
            {
                "body.*.map": "conv.*",
                "stem.extra": "stem.weight",
                "fc": "classifier",
                "head": "classifier",
            }
        ),
    )
    expected = ["conv.12.bias", "stem.weight", "body.x.map.bias", "classifier.weight"]
    assert sorted(read) == sorted(expected)
    back = classifiers.released_weights(
        {"params": {"classifier": {"bias": one}}},
        classifiers.Names({"fc": "classifier", "head": "classifier"}),
    )
    assert list(back) == ["fc.bias"]
