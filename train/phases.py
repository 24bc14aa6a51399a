"""Training of generators in phases, each with checkpoints and curves of its own.

Every batch is a function of seed and step: a run that was killed goes on from its last
checkpoint and ends with what an uninterrupted run gives.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from gptfl_jax import artifacts, convolution, devices, interruption, planning, trackers
from gptfl_jax.errors import UserError
from gptfl_jax.progress import Progress


class TrainState(NamedTuple):
    """What a training phase carries from step to step."""

    params: Any
    ema: Any
    optimizer: Any


def data_mesh(section: str, settings: ConfigDict) -> Mesh:
    """The devices that batches are split over.

    Raises:
        UserError: `settings.batch_size` is no multiple of their number.
    """
    mesh = devices.for_steps(settings.batch_size)
    if settings.batch_size % mesh.size:
        raise UserError(
            f"config.{section}.batch_size = {settings.batch_size}: takes a multiple of "
            f"the number of devices, {mesh.size}"
        )
    return mesh


def identity(config: ConfigDict, section: str) -> dict[str, Any]:
    """What a checkpoint belongs to: all but how long to train and what to do after.

    So a finished run goes on when it is started again with more steps.
    """
    settings = json.loads(config.to_json_best_effort())
    for name in ("tracker", "tracker_options"):
        settings.pop(name, None)
    for name in list(settings[section]):
        if name.endswith(("_steps", "_every")) or name.startswith("test_"):
            del settings[section][name]
    return {"config": settings}


def make_step(
    name: str,
    settings: ConfigDict,
    mesh: Mesh,
    loss: Callable[[Any, Any, PRNGKeyArray], Float[Array, ""]],
    batch: Callable[[Any, PRNGKeyArray], Any],
    key: PRNGKeyArray,
) -> tuple[Callable[..., Any], optax.GradientTransformation]:
    """The compiled step of a phase, and its optimizer; arguments as `train_phase`."""
    num_steps = settings[f"{name}_steps"]
    learning_rate = settings[f"{name}_learning_rate"]
    rise = max(1, num_steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, rise, max(num_steps, rise + 1), learning_rate / 50
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.99, weight_decay=1e-4),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, data, step):
        batch_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
        split = NamedSharding(mesh, PartitionSpec("data"))
        examples = jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, split),
            batch(data, batch_key),
        )
        # The step is no loop of XLA's, in which its own convolution is slow on a CPU.
        with convolution.form("lax"):
            value, gradient = jax.value_and_grad(loss)(state.params, examples, loss_key)
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(settings.ema_decay, (1 + step) / (10 + step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        return TrainState(params, ema, opt_state), value

    return train_step, optimizer


class Rehearsal:
    """Takes the place of `train_phase` where phases are planned, not trained.

    It lowers each phase that it is called for, and gives back the initial parameters.

    Args:
        section: as `train_phase` takes it, as the next two.
        settings: see there.
        mesh: see there.
    """

    def __init__(self, section: str, settings: ConfigDict, mesh: Mesh):
        self._section, self._settings, self._mesh = section, settings, mesh
        self._resident: list[planning.Resident] = []
        self._programs: list[planning.Program] = []
        self._work: list[planning.Work] = []
        self._facts: list[tuple[str, str]] = []

    def __call__(
        self, name: str, *, params: Any, loss: Any, data: Any, batch: Any, key: Any
    ) -> Any:
        steps = self._settings[f"{name}_steps"]
        train_step, optimizer = make_step(
            name, self._settings, self._mesh, loss, batch, key
        )

        def begin(params):
            return TrainState(params, params, optimizer.init(params))

        state = jax.eval_shape(begin, params)
        state, rows = planning.shapes((state, data), self._mesh)
        number = jax.ShapeDtypeStruct((), jnp.int32)

        count = planning.parameters(params)
        self._facts.append(
            (name, f"{planning.amount(count)} parameters, {steps:,} steps")
        )
        self._resident += [
            planning.Resident(f"{name}: training state", state),
            planning.Resident(f"{name}: data", rows),
        ]
        self._programs.append(
            planning.Program(
                f"{name}: a step",
                train_step.lower(state, rows, number),
                f"lower config.{self._section}.batch_size",
            )
        )
        # What makes a batch is left out of the operations.
        examples = jax.eval_shape(batch, data, key)
        flops = planning.flops(jax.grad(loss), params, examples, key)
        self._work.append(planning.Work(f"{name}: steps", flops, steps))
        return params

    def plan(self, facts: Sequence[tuple[str, str]]) -> planning.Plan:
        """Of all phases it was called for."""
        return planning.Plan(
            "train.generator",
            [*facts, *self._facts],
            self._resident,
            self._programs,
            self._work,
        )


def trainer(
    config: ConfigDict, section: str, workdir: pathlib.Path, mesh: Mesh
) -> Callable[..., Any]:
    """`train_phase` of a run, but for what differs between its phases."""
    return functools.partial(
        train_phase,
        workdir=workdir,
        section=section,
        settings=config[section],
        config=config,
        identity=identity(config, section),
        mesh=mesh,
    )


def train_phase(
    name: str,
    workdir: pathlib.Path,
    section: str,
    settings: ConfigDict,
    identity: dict[str, Any],
    mesh: Mesh,
    params: Any,
    loss: Callable[[Any, Any, PRNGKeyArray], Float[Array, ""]],
    data: Any,
    batch: Callable[[Any, PRNGKeyArray], Any],
    key: PRNGKeyArray,
    config: ConfigDict | None = None,
) -> Any:
    """Minimises a loss by AdamW, from the last checkpoint on where there is one.

    Args:
        name: Of the phase; the folder of its checkpoints and metrics.
        workdir: The run's folder.
        section: The name of the config's section, for messages.
        settings: That section. Of the phase it has `<name>_steps` and
            `<name>_learning_rate`, at the peak of a cosine with 5 % linear warm-up; of
            all phases `ema_decay`, `log_every` and `checkpoint_every`.
        identity: What the checkpoints belong to.
        mesh: Devices, over whose axis `data` batches are split.
        params: Initial parameters.
        loss: Of parameters, batch and key.
        data: Arrays that batches are made from.
        batch: Makes a batch from `data` and a key, inside the compiled step.
        key: Step i uses `fold_in(key, i)`.
        config: The whole config, for its tracker; None: there is none.

    Returns:
        The exponential moving average of the parameters.

    Raises:
        UserError: The loss is no longer finite.
    """
    folder = workdir / name
    num_steps = settings[f"{name}_steps"]
    train_step, optimizer = make_step(name, settings, mesh, loss, batch, key)
    average = jax.tree.map(jnp.copy, params)
    state = TrainState(params, average, optimizer.init(params))
    state, data = jax.device_put((state, data), NamedSharding(mesh, PartitionSpec()))

    with artifacts.Checkpoints(folder / "checkpoints", identity, keep=1) as checkpoints:
        start = checkpoints.latest_step()
        if start is not None:
            state = checkpoints.restore(state)
        # The last step that has a line: `log_every` may have changed since.
        saved = {} if start is None else checkpoints.metrics(start)
        logged = int(saved.get("logged", 0))
        tracking = trackers.Tracking()
        if config is not None:
            tracking = trackers.start(config, folder, name, workdir.name, start)
        metrics = artifacts.Metrics(
            folder / "metrics.jsonl", start, logged, follow=tracking.line
        )
        losses, clock = [], time.perf_counter()
        with (
            tracking,
            interruption.deferred("stretch of log_every steps"),
            Progress(num_steps, "step", start or 0, name) as progress,
        ):
            for step in range(start or 0, num_steps):
                state, value = train_step(state, data, jnp.int32(step))
                losses.append(value)
                done, stops = step + 1, False
                if done % settings.log_every == 0 or done == num_steps:
                    mean = float(np.mean(jax.device_get(losses)))
                    if not np.isfinite(mean):
                        raise UserError(
                            f"the loss of {name} is {mean} at step {done}: lower "
                            f"config.{section}.{name}_learning_rate"
                        )
                    now = time.perf_counter()
                    metrics.write(
                        done, loss=mean, steps_per_second=len(losses) / (now - clock)
                    )
                    progress.note(f"loss {mean:.4f}")
                    losses, clock, logged = [], now, done
                    # Only here, so that no line is a mean over fewer steps.
                    stops = interruption.should_save()
                progress.update()
                if stops or done % settings.checkpoint_every == 0 or done == num_steps:
                    checkpoints.save(done, state, {"logged": float(logged)})
                if stops:
                    checkpoints.wait()
                    raise interruption.Interrupted(
                        f"{name} is saved after step {done:,} of {num_steps:,}; the "
                        "same command goes on from there"
                    )
    return jax.device_get(state.ema)
