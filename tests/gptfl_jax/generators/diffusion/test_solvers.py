import json

import chex
import jax
import numpy as np
import ported_models
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import solvers
from gptfl_jax.generators.diffusion.solvers import DDIM, LCM, DPMSolver

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_samples_equal_torch(sampler, prediction):
    reference = ported_models.load(f"solver_{sampler}_{prediction}")
    samples = ported_models.solver_samples(reference)
    assert ported_models.relative_error(samples, reference["samples"]) < 1e-4


def sample(schedule, start, network, noise=None):
    """Runs a sampler in float64 with `network(sample, timestep)`.

    `noise` is that of each step, where the sampler adds some.
    """
    x, clean = start, np.zeros_like(start)
    with jax.enable_x64(True):
        for i in range(len(schedule.timesteps)):
            row = jax.tree.map(lambda column, i=i: column[i], schedule)
            added = None if noise is None else noise[i]
            x, clean = solvers.step(row, x, network(x, row.timesteps), clean, added)
    return np.asarray(x)


def levels(solver, timestep):
    share = solver.alphas_cumprod()[timestep]
    return np.sqrt(share), np.sqrt(1 - share)


def prediction(solver, x, clean, timestep):
    """What a network that knows the clean sample would put out."""
    alpha, sigma = levels(solver, timestep)
    noise = (x - alpha * clean) / sigma
    return {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * clean,
        "sample": clean,
    }[solver.prediction_type]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "kind, options",
    [(DPMSolver, {}), (DPMSolver, {"solver_type": "heun"}), (DDIM, {})],
)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_one_possible_sample_is_found_exactly(kind, options, prediction_type, steps):
    solver = kind(prediction_type=prediction_type, **NOISE | options)
    clean = np.array([0.3, -0.7])
    found = sample(
        solver.schedule(steps),
        np.array([1.0, 2.0]),
        lambda x, t: prediction(solver, x, clean, t),
    )
    np.testing.assert_allclose(found, clean, atol=1e-5)


def test_second_order_for_gaussian_data():
    """Data of variance s^2 have a known flow: x grows with its standard deviation."""
    deviation, start = 1.0, np.array([1.0])

    def error(order, steps):
        solver = DPMSolver(solver_order=order, final_sigmas_type="sigma_min", **NOISE)

        def network(x, t):
            alpha, sigma = levels(solver, t)
            variance = (alpha * deviation) ** 2 + sigma**2
            clean = alpha * deviation**2 / variance * x
            return prediction(solver, x, clean, t)

        def spread(timestep):
            alpha, sigma = levels(solver, timestep)
            return np.sqrt((alpha * deviation) ** 2 + sigma**2)

        exact = start * spread(0) / spread(999)
        return np.abs(sample(solver.schedule(steps), start, network) - exact).item()

    # Three times the steps: a third of the first order's error, and nearly a ninth of
    # the second's, whose first step is of first order.
    assert error(1, 111) / error(1, 333) == pytest.approx(3, rel=0.1)
    assert 6 < error(2, 111) / error(2, 333) < 10
    assert error(2, 333) < error(1, 333) / 6


def test_first_order_is_ddim():
    """The same timesteps, and both end at a clean sample."""
    first = DPMSolver(solver_order=1, timestep_spacing="trailing", **NOISE)
    ddim = DDIM(timestep_spacing="trailing", clip_sample=False, **NOISE)

    def network(x, t):
        return np.sin(3 * x) + t / 1000

    start = np.linspace(-1, 1, 7)
    one = sample(first.schedule(10), start, network)
    other = sample(ddim.schedule(10), start, network)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_ddim_clips_the_clean_sample_but_not_its_noise():
    solver = DDIM(clip_sample_range=0.5, **NOISE)
    (timestep,) = solver.schedule(1).timesteps
    alpha, sigma = levels(solver, timestep)
    # The last step goes to the clean sample, here (2 - sigma * 0.1) / alpha > 0.5.
    assert (2 - sigma * 0.1) / alpha > 0.5
    found = sample(solver.schedule(1), np.array([2.0]), lambda x, t: np.array([0.1]))
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)


def test_timesteps_by_hand():
    assert DPMSolver().schedule(4).timesteps.tolist() == [999, 749, 500, 250]
    assert DDIM(steps_offset=1).schedule(4).timesteps.tolist() == [751, 501, 251, 1]


def test_timesteps_of_latent_consistency_by_hand():
    """Every twentieth level from 19 to 999, of which each steps-th is picked."""
    assert LCM().schedule(4).timesteps.tolist() == [999, 759, 499, 259]
    assert LCM().schedule(1).timesteps.tolist() == [999]
    assert LCM(original_inference_steps=4).schedule(4).timesteps.tolist() == [
        *(999, 749, 499, 249)
    ]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_consistency_step_by_hand(prediction_type):
    """To the clean sample, and back to the next level with the noise that is given."""
    solver = LCM(prediction_type=prediction_type, timestep_scaling=1e-4)
    clean, start = np.array([0.3, -0.7]), np.array([1.0, 2.0])
    noise = np.array([[0.5, 1.5], [0.0, 0.0]])
    seen = []

    def network(x, timestep):
        seen.append(x)
        return prediction(solver, x, clean, timestep)

    schedule = solver.schedule(2)
    found = sample(schedule, start, network, noise)

    # Times of 0.0999 and 0.0499 beside a deviation of 0.5: data still show through.
    def consistent(x, time):
        skip = 0.25 / (time**2 + 0.25)
        return skip * x + time / np.sqrt(time**2 + 0.25) * clean

    alpha, sigma = levels(solver, 499)
    second = alpha * consistent(start, 0.0999) + sigma * noise[0]
    np.testing.assert_allclose(seen[1], second, rtol=1e-5)
    np.testing.assert_allclose(found, consistent(second, 0.0499), rtol=1e-5)
    assert schedule.next_from_noise[-1] == 0


def test_latent_consistency_clips_only_where_it_is_told_to():
    def found(**options):
        schedule = LCM(prediction_type="sample", **options).schedule(1)
        return sample(
            schedule, np.zeros(1), lambda x, t: np.array([3.0]), np.zeros((1, 1))
        )

    np.testing.assert_allclose(found(), 3.0, rtol=1e-6)
    np.testing.assert_allclose(
        found(clip_sample=True, clip_sample_range=2.0), 2.0, rtol=1e-6
    )


def test_levels_of_karras_by_hand():
    """Equally spaced in the seventh root of the noise-to-signal ratio."""
    solver = DPMSolver(use_karras_sigmas=True, **NOISE)
    schedule = solver.schedule(3)
    ratios = np.sqrt(1 / solver.alphas_cumprod() - 1)
    middle = ((ratios[0] ** (1 / 7) + ratios[999] ** (1 / 7)) / 2) ** 7
    nearest = np.abs(np.log(ratios / middle)).argmin()
    assert schedule.timesteps.tolist() == [999, nearest, 0]
    # clean = sample / alpha - ratio * noise, for the exact ratio.
    np.testing.assert_allclose(schedule.clean_from_output[1], -middle, rtol=1e-6)


def test_coefficients_are_finite():
    for prediction_type in ("epsilon", "v_prediction"):
        for steps in (1, 2, 14, 15, 1000):
            solver = DPMSolver(prediction_type=prediction_type, **NOISE)
            schedule = solver.schedule(steps)._replace(clean_limit=0.0)
            assert all(
                np.isfinite(column).all() for column in jax.tree.leaves(schedule)
            )


@pytest.mark.parametrize("kind", [DPMSolver, DDIM])
def test_every_number_of_steps_has_as_many_levels(kind):
    """Also where rounding gives one more (61, 103), or an offset leads beyond them."""
    for spacing in ("linspace", "leading", "trailing"):
        solver = kind(timestep_spacing=spacing, steps_offset=1)
        for steps in (1, 2, 61, 103, 500, 999, 1000):
            timesteps = solver.schedule(steps).timesteps
            assert timesteps.shape == (steps,) and (np.diff(timesteps) <= 0).all()
            assert 0 <= timesteps[-1] and timesteps[0] < 1000
    trailing = kind(timestep_spacing="trailing").schedule(61).timesteps
    assert trailing[[0, 1, -1]].tolist() == [999, 983, 15]


def test_files_of_other_samplers():
    """Diffusers' UniPC and DDPM schedulers of the same model."""
    unipc = {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2"}
    ddpm = {"_class_name": "DDPMScheduler", "variance_type": "fixed_small"}
    expected = DPMSolver().schedule(7)
    for options in (unipc, ddpm):
        found = DPMSolver.from_json(options).schedule(7)
        chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(UserError, match=f"num_steps = {steps}: takes 1 to 1000"):
        DPMSolver().schedule(steps)


def test_more_steps_than_a_consistency_model_knows_are_refused():
    with pytest.raises(UserError, match="num_steps = 51: takes 1 to 50"):
        LCM().schedule(51)
    with pytest.raises(UserError, match="original_inference_steps = 2000: takes 1"):
        LCM(original_inference_steps=2000)


@pytest.mark.parametrize(
    "option, value",
    [
        ("prediction_type", "flow_prediction"),
        ("beta_schedule", "sigmoid"),
        ("algorithm_type", "sde-dpmsolver++"),
        ("use_lu_lambdas", True),
        ("solver_order", 3),
        ("variance_type", "learned_range"),
    ],
)
def test_options_that_are_not_computed_are_refused(option, value):
    with pytest.raises(UserError, match=rf"{option} = '?{value}"):
        DPMSolver.from_json({option: value})


def test_config_survives_its_file():
    solver = DPMSolver(prediction_type="v_prediction", solver_type="heun", **NOISE)
    assert json.loads(json.dumps(solver.to_json(), allow_nan=False))
    assert DPMSolver.from_json(solver.to_json()) == solver
    assert solver.to_json()["_class_name"] == "DPMSolverMultistepScheduler"
