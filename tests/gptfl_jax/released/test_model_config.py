import json
import math

import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion.solvers import DDIM, DPMSolver
from gptfl_jax.generators.diffusion.unet import UNetConfig
from gptfl_jax.generators.diffusion.vae import VAEConfig
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig
from gptfl_jax.generators.speech.hifigan import HifiGanConfig
from gptfl_jax.generators.speech.speecht5 import SpeechT5Config
from gptfl_jax.generators.text.t5 import T5Config
from gptfl_jax.released.model_config import building


@pytest.mark.parametrize(
    "kind",
    [
        *(CLIPTextConfig, UNetConfig, VAEConfig, T5Config, SpeechT5Config),
        *(HifiGanConfig, DPMSolver, DDIM),
    ],
)
def test_options_survive_their_file(kind):
    text = json.dumps(kind().to_json())
    assert kind.from_json(json.loads(text)).to_json() == kind().to_json()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        # Building so deep a network takes hours.
        (CLIPTextConfig, {"num_hidden_layers": 10**9}, "a whole number of 1 to 100"),
        (UNetConfig, {"layers_per_block": 101}, "a whole number of 1 to 100"),
        (UNetConfig, {"transformer_layers_per_block": [1, 1, 1, 10**6]}, "1 to 100"),
        (T5Config, {"num_decoder_layers": 0}, "a whole number of 1 to 100 or null"),
        (T5Config, {"d_model": 2**21}, "a whole number of 1 to 1,048,576"),
        (T5Config, {"pad_token_id": -2}, "a whole number of -1 to 1,048,576"),
        (T5Config, {"d_model": 10**400}, "a whole number of 1 to 1,048,576"),
        (T5Config, {"d_model": True}, "a whole number of 1 to 1,048,576"),
        (T5Config, {"d_model": 8.0}, "a whole number of 1 to 1,048,576"),
        (T5Config, {"d_model": "8"}, "a whole number of 1 to 1,048,576"),
        (T5Config, {"layer_norm_epsilon": math.nan}, "takes a number"),
        (T5Config, {"layer_norm_epsilon": None}, "takes a number"),
        (T5Config, {"tie_word_embeddings": 1}, "takes true or false"),
        (T5Config, {"feed_forward_proj": ["relu"]}, "takes text"),
        (VAEConfig, {"block_out_channels": 64}, "takes a list"),
        (VAEConfig, {"block_out_channels": [64, 0]}, "takes a list, each a whole numb"),
        (VAEConfig, {"block_out_channels": [[[[1]]]]}, "holds lists in lists"),
        (VAEConfig, {"latent_channels": {"a": 1}}, "a whole number of 1 to 1,048,576"),
        (HifiGanConfig, {"resblock_dilation_sizes": [1, 3]}, "a list, each a list"),
        (SpeechT5Config, {"max_text_positions": 2**20}, "67,108,864 at most"),
        (DDIM, {"num_train_timesteps": 10**12}, "a whole number of 1 to 1,048,576"),
        (DDIM, {"trained_betas": [0.1]}, "trained_betas: takes one for each of"),
        (DPMSolver, {"solver_type": "flow"}, "takes 'midpoint' or 'heun'"),
        (DPMSolver, {"solver_type": "x" * 10**6}, "takes text"),
    ],
)
def test_values_that_no_network_has_are_refused(kind, options, message):
    with pytest.raises(UserError, match=rf"m/config\.json: .*{message}") as info:
        kind.from_json(options, "m/config.json")
    name = next(iter(options))
    assert name in str(info.value) or "lists in lists" in message


def test_infinity_is_a_number():
    given = json.loads('{"lambda_min_clipped": -Infinity}')
    assert DPMSolver.from_json(given).lambda_min_clipped == -math.inf


def test_options_that_contradict_each_other_are_explained():
    with pytest.raises(UserError, match=r"^m/config.json: describes no network .* 3"):
        with building("m/config.json"):
            raise TypeError("sizes 2 and 3")
    with pytest.raises(UserError, match="^as it is$"):
        with building("m/config.json"):
            raise UserError("as it is")
