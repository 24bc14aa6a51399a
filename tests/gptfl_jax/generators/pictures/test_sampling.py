"""Sampling without its arrays: what is lowered is what runs."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from small_pipeline import SOLVER, networks, parameters

from gptfl_jax import planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import sampling as diffusion
from gptfl_jax.generators.diffusion.solvers import LCM
from gptfl_jax.generators.pictures import sampling, stable_diffusion

ROWS, STEPS = 3, 2


def lowered(guided=True, solver=SOLVER, small=None):
    small = small or networks()
    return sampling.lower(
        small,
        small.latent_shape(),
        placement.mesh(),
        batch=ROWS,
        num_steps=STEPS,
        guided=guided,
        solver=solver,
    )


@pytest.mark.parametrize("solver", [SOLVER, LCM()])
def test_the_lowered_programs_make_the_pictures_of_a_run(solver):
    tokens = np.arange(ROWS * 8, dtype=np.int32).reshape(ROWS, 8)
    keys = jax.random.split(jax.random.key(7), ROWS)
    guidance = np.float32([1, 2, 3])
    noise_keys = keys if solver.adds_noise else None
    start = diffusion.Start(tokens, tokens[:1], guidance, keys, None, noise_keys)
    schedule, params = solver.schedule(STEPS), parameters()
    shape, mesh = networks().latent_shape(), placement.mesh()
    expected = diffusion.sample(networks(), shape, mesh, params, start, schedule)

    programs = {n: p.compile() for n, p in lowered(solver=solver).programs.items()}
    context, state = programs["texts"](params, start)
    for i in range(STEPS):
        row = jax.tree.map(lambda column, i=i: column[i], schedule)
        state = programs["a step"](params["unet"], row, context, guidance, state)
    pictures = programs["decoding"](params["vae"], state.sample)
    np.testing.assert_array_equal(pictures, expected)


def test_guidance_takes_twice_the_operations_of_a_step():
    guided, plain = lowered().flops, lowered(guided=False).flops
    assert guided["steps"][1] == STEPS
    assert guided["steps"][0] == pytest.approx(2 * plain["steps"][0], rel=0.02)
    assert guided["decoding"] == plain["decoding"]


def test_a_network_that_takes_the_guidance_needs_one_evaluation_a_step():
    small = networks()
    config = dataclasses.replace(small.unet.config, time_cond_proj_dim=6)
    unet = dataclasses.replace(small.unet, config=config)
    distilled = dataclasses.replace(small, unet=unet)
    plain = lowered(guided=False).flops["steps"]
    folded = lowered(small=distilled).flops["steps"]
    # More by the embedding, and by times that differ from sample to sample.
    assert plain[0] < folded[0] < 1.05 * plain[0]


@pytest.mark.long
def test_releases_are_known_by_their_sizes(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if constants := sys.modules.get("huggingface_hub.constants"):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = stable_diffusion.networks_of("someone/stable-diffusion-2-1", "bfloat16")
    assert found.latent_shape() == (96, 96, 4)
    sizes = {n: planning.parameters(s) for n, s in found.shapes().items()}
    # As diffusers counts them.
    assert sizes["unet"] == 865_910_724
    assert sizes["vae"] == 83_653_863
    assert sizes["text_encoder"] == 340_387_840
    with pytest.raises(UserError, match="someone/diffusion"):
        stable_diffusion.networks_of("someone/diffusion")
