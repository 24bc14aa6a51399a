"""No tracker: metrics.jsonl alone."""

from gptfl_jax.trackers import Run, Tracker


def none(run: Run) -> Tracker:
    """No tracker."""
    return Tracker()
