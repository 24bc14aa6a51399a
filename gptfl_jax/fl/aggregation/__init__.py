"""How a cohort's updates become one; each public function is one way, and found here.

A function is an aggregation when its annotation says that it returns an `Aggregation`,
which `gptfl_jax.fl.sums` describes. The first line of its docstring is the name to
show, a colon and what it does.
"""

from gptfl_jax import choices, families

globals().update(choices.available(families.AGGREGATION))
__all__ = [*choices.available(families.AGGREGATION)]
