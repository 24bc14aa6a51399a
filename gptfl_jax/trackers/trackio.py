"""trackio: a database on this machine, or a Space of the Hugging Face hub."""

from collections.abc import Mapping

from gptfl_jax.trackers import Run, Tracker, needs


class _Trackio(Tracker):
    def __init__(self, run: Run, project: str, space_id: str):
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=project,
            name=run.id,
            group=run.group,
            space_id=space_id or None,
            config={**run.config, "machine": run.machine},
            resume="allow",
            embed=False,
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, name, file) -> None:
        self._run.log({name: self._trackio.Image(str(file))}, step=0)

    def finish(self) -> None:
        self._run.finish()


@needs("trackio")
def trackio(run: Run, project: str = "gptfl-jax", space_id: str = "") -> Tracker:
    """trackio; `trackio show` opens its page.

    Args:
        project: that the run is in.
        space_id: a Space of the hub, as owner/name; empty: this machine.
    """
    return _Trackio(run, project, space_id)
