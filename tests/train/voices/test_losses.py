"""The losses of the small voices, by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from train.voices import losses


def test_the_speech_loss_by_hand():
    """Two clips of 4 and 2 frames of one band, two frames a step."""
    made = types.SimpleNamespace(
        frames=jnp.asarray([[1.0, 1, 1, 1], [2, 2, 9, 9]])[:, :, None],
        stop=jnp.asarray([[0.5, 0.5, 0.5, 0.5], [0.8, 0.8, 0.1, 0.1]]),
    )
    given = {}

    class Model:
        config = types.SimpleNamespace(
            reduction_factor=2,
            pad_token_id=1,
            speech_decoder_prenet_layers=2,
            speech_decoder_prenet_units=3,
            speech_decoder_prenet_dropout=0.5,
        )

        def apply(self, variables, *arguments, method):
            given[method] = arguments
            return {"steps": (made, None), "refine": made.frames + 1}.get(method)

    mels = jnp.asarray([[3.0, 4, 5, 6], [2, 2, 0, 0]])[:, :, None]
    tokens = jnp.asarray([[5, 6, 2], [5, 2, 1]])
    speakers = jnp.arange(8.0).reshape(4, 2)
    loss = losses.speech_loss(
        Model(),
        {},
        {"model": {}, "speakers": speakers},
        (mels, jnp.asarray([4, 2]), tokens, jnp.asarray([3, 0])),
        jax.random.key(0),
    )
    before = (2 + 3 + 4 + 5 + 0 + 0) / 6
    after = (1 + 2 + 3 + 4 + 1 + 1) / 6
    # Frames 2 and 3 of the first clip and both of the second belong to a last step.
    entropy = -(4 * np.log(0.5) + 2 * np.log(0.8)) / 6
    np.testing.assert_allclose(loss, before + after + entropy, rtol=1e-6)
    frames, voices, keep = given["steps"][:3]
    assert frames[:, :, 0].tolist() == [[0, 4], [0, 2]]  # the last of the step before
    assert voices.tolist() == [[6, 7], [0, 1]]
    assert keep.shape == (2, 2, 2, 3)
    assert given["encode"][1].tolist() == [[True] * 3, [True, True, False]]
