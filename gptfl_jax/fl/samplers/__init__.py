"""How the cohort of a round is drawn; each public function is one way, and found here.

A function is a sampler's when its annotation says that it returns a `Sampler`, which
`gptfl_jax.fl.sampling` describes. Of `num_clients`, `offsets` (of `FederatedData`) and
`cohort_size` it takes what it needs. The first line of its docstring is the name to
show, a colon and what it does.
"""

from gptfl_jax import choices, families

globals().update(choices.available(families.SAMPLING))
__all__ = [*choices.available(families.SAMPLING)]
