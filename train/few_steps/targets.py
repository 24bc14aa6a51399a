"""What a few-step student learns from its teacher: the way it takes, at few points.

The teacher samples in many steps, with guidance. The student is to be at the same
places after each of its few steps, so its outputs follow from the solver's
coefficients: those under which the solver takes it from one place to the next. That is
progressive distillation (Salimans and Ho, arXiv 2202.00512) in one stage and for any
solver that is a table, with the guidance folded in as by Meng et al.
(arXiv 2210.03142).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gptfl_jax import convolution
from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import sampling
from gptfl_jax.generators.diffusion.solvers import Schedule, Solver


def schedules(solver: Solver, steps: int, teacher_steps: int) -> list[Schedule]:
    """Of the student and of the teacher, who passes all of the student's noise levels.

    Raises:
        UserError: there are no such steps, or the teacher passes others.
    """
    if solver.adds_noise or teacher_steps % steps:
        raise UserError(
            f"config.few_steps.steps_of_teacher = {teacher_steps}: takes a multiple of "
            f"config.few_steps.steps = {steps}, and a solver that adds no noise"
        )
    student, teacher = solver.schedule(steps), solver.schedule(teacher_steps)
    if not np.isinf(student.clean_limit).all():
        raise UserError("a student's solver must not clip: set clip_sample to False")
    passed = teacher.timesteps[:: teacher_steps // steps]
    if not np.array_equal(passed, student.timesteps):
        raise UserError(
            f"config.few_steps.steps = {steps}: the student's noise levels "
            f"{student.timesteps.tolist()} are not among those of the teacher: take "
            "another number, or another of config.few_steps.steps_of_teacher"
        )
    return [student, teacher]


def states(
    networks: sampling.Networks, shape: Sequence[int]
) -> Callable[..., list[Float[np.ndarray, "batch height width channels"]]]:
    """A function that samples, and gives the latents at every `every`-th step.

    Its arguments are the parameters, a `sampling.Start`, a schedule and `every`; of so
    many steps it gives the latents before each, and behind the last.
    """

    def program(function):
        def traced(*arguments):
            with convolution.outside_loops():
                return function(*arguments)

        return jax.jit(traced)

    parts = sampling.functions(networks, shape)
    begin, step = program(parts.begin), program(parts.step)

    def run(params: Any, start: sampling.Start, schedule: Schedule, every: int):
        conditions, state = begin(params, start)
        kept = [np.asarray(state.sample)]
        for i in range(len(schedule.timesteps)):
            row = jax.tree.map(lambda column, i=i: column[i], schedule)
            state = step(params["unet"], row, conditions, start.guidance, state)
            if (i + 1) % every == 0:
                kept.append(np.asarray(state.sample))
        return kept

    return run


def outputs(
    schedule: Schedule, places: Sequence[Float[np.ndarray, "*shape"]]
) -> list[Float[np.ndarray, "*shape"]]:
    """The network's outputs under which the solver passes these places.

    Args:
        schedule: the solver's, without clipping.
        places: latents before each step, and behind the last.
    """
    found, before = [], np.zeros_like(places[0])
    for i in range(len(schedule.timesteps)):
        row = jax.tree.map(lambda column, i=i: np.float64(column[i]), schedule)
        # The clean sample is linear in the output: what comes next is so in it.
        per_clean = row.next_from_output / row.clean_from_output
        from_sample = row.next_from_sample - per_clean * row.clean_from_sample
        rest = from_sample * places[i] + row.next_from_previous * before
        clean = (places[i + 1] - rest) / (row.next_from_clean + per_clean)
        output = (clean - row.clean_from_sample * places[i]) / row.clean_from_output
        found.append(output.astype(np.float32))
        before = clean
    return found


def start_of(
    tokens: Int[np.ndarray, "batch length"],
    empty: Int[np.ndarray, "one length"],
    keys: Key[Array, " batch"],
    guidance: float,
) -> sampling.Start:
    """A batch's start, steered away from the empty prompt."""
    scale = np.full(len(tokens), guidance, np.float32)
    negative = empty if guidance > 1 else None
    return sampling.Start(tokens, negative, scale, keys, None)
