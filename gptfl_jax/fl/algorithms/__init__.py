"""Federated algorithms, a family a file; each public function is one, and found here.

Notation: x the server's weights, y_i those of client i after its local steps, d_i =
y_i - x its update, p_i its weight in the cohort (sum 1), eta the local learning rate, g
a gradient at y.

A function is an algorithm when its first parameters are `learner, local`. It composes
what `gptfl_jax.fl.composition.compose` takes, and hands its further keywords there. The
first line of its docstring is the name to show, a colon and what it does; the update as
a formula and the citation follow.
"""

from gptfl_jax import choices, families

globals().update(choices.available(families.ALGORITHM))
__all__ = [*choices.available(families.ALGORITHM)]
