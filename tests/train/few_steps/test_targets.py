"""The student's outputs lead its solver through the teacher's places."""

import jax
import numpy as np
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import solvers
from gptfl_jax.generators.diffusion.solvers import DDIM, LCM, DPMSolver
from train.few_steps import targets

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {"timestep_spacing": "trailing", "clip_sample": False}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind, options", [(DPMSolver, {}), (DDIM, TRAILING)])
def test_the_solver_passes_the_places(kind, options, prediction_type):
    solver = kind(prediction_type=prediction_type, **NOISE | options)
    schedule = solver.schedule(4)
    generator = np.random.default_rng(0)
    places = [generator.normal(size=(2, 3)) for _ in range(5)]
    found = targets.outputs(schedule, places)
    sample, clean = places[0], np.zeros((2, 3))
    with jax.enable_x64(True):
        for i, output in enumerate(found):
            np.testing.assert_allclose(sample, places[i], atol=1e-4)
            row = jax.tree.map(lambda column, i=i: column[i], schedule)
            sample, clean = solvers.step(row, sample, output, clean)
    np.testing.assert_allclose(sample, places[4], atol=1e-4)


def test_a_perfect_teacher_is_its_own_student():
    """Where one sample is possible, few steps take the same way as many."""
    solver = DPMSolver(prediction_type="v_prediction", **NOISE)
    clean, start = np.array([0.3, -0.7]), np.array([1.0, 2.0])
    student, teacher = targets.schedules(solver, 4, 16)
    share = solver.alphas_cumprod()

    def velocity(x, timestep):
        alpha, sigma = np.sqrt(share[timestep]), np.sqrt(1 - share[timestep])
        return alpha * (x - alpha * clean) / sigma - sigma * clean

    places, x, before = [start], start, np.zeros(2)
    with jax.enable_x64(True):
        for i in range(16):
            row = jax.tree.map(lambda column, i=i: column[i], teacher)
            x, before = solvers.step(row, x, velocity(x, row.timesteps), before)
            if i % 4 == 3:
                places.append(np.asarray(x))
    for i, output in enumerate(targets.outputs(student, places)):
        expected = velocity(places[i], student.timesteps[i])
        np.testing.assert_allclose(output, expected, atol=1e-3)


def test_levels_that_the_teacher_does_not_pass_are_refused():
    student, teacher = targets.schedules(DPMSolver(**NOISE), 4, 16)
    assert student.timesteps.tolist() == teacher.timesteps[::4].tolist()
    assert student.timesteps.tolist() == [999, 749, 500, 250]
    with pytest.raises(UserError, match="steps_of_teacher = 15: takes a multiple of"):
        targets.schedules(DPMSolver(**NOISE), 4, 15)
    with pytest.raises(UserError, match="a solver that adds no noise"):
        targets.schedules(LCM(), 4, 16)
    with pytest.raises(UserError, match="are not among those of the teacher"):
        targets.schedules(DDIM(clip_sample=False), 4, 16)
    with pytest.raises(UserError, match="must not clip"):
        targets.schedules(DDIM(timestep_spacing="trailing"), 4, 16)
