"""What a run has cost: floating-point operations of everything that led to it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from federated.report.runs import Method, Run


class Cost(NamedTuple):
    """Floating-point operations, None where they are not known.

    Tests, and what the host draws by rule, are not counted. Nor is what an algorithm
    computes beside FedAvg's gradients, as SCAFFOLD's `control="start"`, which passes
    over all examples once more, and MOON's two other models.
    """

    generation: float | None
    """Of stage 1, for all of its samples."""
    stage_2: float | None
    """Of the training of the starting weights."""
    clients: float | None
    """Of local training."""
    server: float | None
    """Of the server's steps on synthetic examples."""

    @property
    def before(self) -> float | None:
        """What was spent before the first round."""
        return _total((self.generation, self.stage_2))

    @property
    def total(self) -> float | None:
        """All of it."""
        return _total(self)


def _total(parts: Sequence[float | None]) -> float | None:
    return None if None in parts else float(sum(parts))


def examples_trained(run: Run) -> np.ndarray:
    """Examples that clients have trained on, until each line of the run's metrics.

    With `local_steps` a batch counts as full, without it all examples count, also with
    `drop_last`. Only clients whose updates counted are in the metrics.
    """
    federated = run.config["federated"]
    if federated["local_steps"]:
        each, times = "steps", federated["batch_size"]
    else:
        each, times = "examples", federated["local_epochs"]
    return np.cumsum([times * line.get(each, 0) for line in run.metrics])


def until_each_line(run: Run) -> list[Cost]:
    """The cost of a run until each line of its metrics."""
    known = run.flops
    example, server = known.get("example"), known.get("server's round")

    def product(flops: float | None, times: float) -> float | None:
        return None if flops is None else flops * float(times)

    return [
        Cost(
            known.get("generation"),
            known.get("stage 2"),
            product(example, trained),
            product(server, line["step"]),
        )
        for line, trained in zip(run.metrics, examples_trained(run), strict=True)
    ]


def row_of(method: Method) -> dict[str, Any]:
    """Means over the runs of a method; None where one is not known."""
    costs = [until_each_line(run)[-1] for run in method.runs]

    def mean(values: Sequence[float | None]) -> float | None:
        return None if None in values else float(np.mean(values))

    row = {
        f"flops_{name}": mean([getattr(c, name) for c in costs])
        for name in Cost._fields
    }
    return {**row, "flops_total": mean([cost.total for cost in costs])}
