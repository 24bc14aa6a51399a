"""TensorBoard: event files in the folder of the run, by tensorboardX."""

import json
import secrets
from collections.abc import Mapping

import numpy as np
import PIL.Image

from gptfl_jax.trackers import Run, Tracker, needs


class _Events(Tracker):
    def __init__(self, run: Run):
        import tensorboardX

        # Events of steps that are run once more are hidden.
        purge = None if run.done is None else run.done + 1
        self._writer = tensorboardX.SummaryWriter(
            str(run.folder / "tensorboard"),
            purge_step=purge,
            # Its names are of the second: another start in it would overwrite the file.
            filename_suffix=f".{secrets.token_hex(4)}",
        )
        if run.done is None:
            for name, values in (("config", run.config), ("machine", run.machine)):
                text = json.dumps(values, indent=2, default=str)
                self._writer.add_text(name, f"```\n{text}\n```")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name, file) -> None:
        with PIL.Image.open(file, formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, dataformats="HWC")

    def finish(self) -> None:
        self._writer.close()


@needs("tensorboardX")
def tensorboard(run: Run) -> Tracker:
    """TensorBoard: event files in the run's folder, for `tensorboard --logdir=`."""
    return _Events(run)
