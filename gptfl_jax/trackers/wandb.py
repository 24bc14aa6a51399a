"""Weights & Biases."""

from collections.abc import Mapping
from typing import Literal

from gptfl_jax.trackers import Run, Tracker, needs


class _Wandb(Tracker):
    def __init__(self, run: Run, **options: str):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            id=run.id,
            name=run.name,
            group=run.group,
            dir=run.folder,
            config={**run.config, "machine": run.machine},
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
            **{name: value for name, value in options.items() if value},
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, name, file) -> None:
        self._run.log({name: self._wandb.Image(str(file))}, commit=False)

    def finish(self) -> None:
        self._run.finish()


@needs("wandb")
def wandb(
    run: Run,
    project: str = "gptfl-jax",
    entity: str = "",
    mode: Literal["", "online", "offline"] = "",
) -> Tracker:
    """Weights & Biases; log in with `wandb login`.

    Args:
        project: that the run is in.
        entity: user or team; empty: yours.
        mode: offline keeps all in the run's folder, for `wandb sync` later; empty: as
            WANDB_MODE says, or online.
    """
    return _Wandb(run, project=project, entity=entity, mode=mode)
