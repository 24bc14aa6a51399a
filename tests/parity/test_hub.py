"""Files of weights that PyTorch writes, read without it."""

import numpy as np
import pytest
import torch
import torch_references

from gptfl_jax.released import hub


@pytest.mark.parametrize("zipped", [True, False])
def test_saved_tensors_are_read(zipped, tmp_path):
    tensors = torch_references.saved_tensors()
    path = tmp_path / "weights.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    weights = hub.read_weights(path)
    assert weights.keys() == tensors.keys()
    for name, value in weights.items():
        expected = tensors[name].detach()
        assert str(value.dtype) == str(expected.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(
            value.astype(np.float64), expected.to(torch.float64).numpy()
        )


@pytest.mark.parametrize("within", ["state_dict", "model"])
def test_state_dict_of_a_module_is_read(within, tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save({within: module.state_dict(), "step": 3}, tmp_path / "x.pth")
    weights = hub.read_weights(tmp_path / "x.pth")
    assert set(weights) == set(module.state_dict())
    np.testing.assert_array_equal(
        weights["0.weight"], module[0].weight.detach().numpy()
    )


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.bin")
    with pytest.raises(hub.BadWeights, match="module.bin: refused: it names torch.nn"):
        hub.read_weights(tmp_path / "module.bin")
