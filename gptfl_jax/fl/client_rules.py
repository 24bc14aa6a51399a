"""What a client minimises, how it steps and what it reports: the parts of a rule.

An algorithm replaces some functions of a `LocalRule`; `plain_rule` has the identity in
every place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PRNGKeyArray, PyTree

from gptfl_jax.fl.sums import accumulator_dtype
from gptfl_jax.trainable import frozen, moving
from gptfl_jax.training import Batch, Learner, Variables


class Context(NamedTuple):
    """What a client holds when it starts."""

    variables: Variables
    """The server's."""
    shared: Any
    """What else the server sends: say, its control variate."""
    own: Any
    """The client's own state, kept between its rounds."""


class Message(NamedTuple):
    """What a client sends back, or the mean over the clients that did."""

    update: PyTree
    """Trained minus downloaded params, or what the algorithm makes of it; None for
    params that stay with their client, and at the server as they were."""
    model_state: PyTree
    """Trained minus downloaded model state, as batch statistics."""
    extra: PyTree
    """Anything else an algorithm sends; combined by the weighted mean."""


class LocalRule(NamedTuple):
    """What a client minimises, how it steps and what it reports.

    The identity in every place is `plain_rule`, FedAvg's.
    """

    init_shared: Callable[[PyTree], Any]
    """params -> what the server keeps besides the weights."""
    init_own: Callable[[Context], Any]
    """Context (own is None) -> state of a client in its first round."""
    begin: Callable[[Context], Variables]
    """Where the client starts."""
    loss: Callable[[Variables, Batch, PRNGKeyArray, Context], tuple[Array, PyTree]]
    """(variables, batch, key, context) -> (loss, model state), differentiated."""
    correct: Callable[[PyTree, PyTree, Context], PyTree]
    """(gradient, params, context) -> the gradient to step along."""
    report: Callable[[Context, Variables, "Measured"], tuple[Message, Any]]
    """(context, trained variables, measured) -> (message, new own state)."""
    receive: Callable[[Message, Any, Array], tuple[PyTree, Any]]
    """(mean message, shared, share of the population's weight in the cohort) ->
    (update for the server optimizer, new shared)."""
    shadow: Callable[[Array], Array] | None = None
    """Asks for the gradient mass: x -> gradient of a number that starts at 0 and takes
    the client's steps with the client's optimizer. `lambda x: -1.0` moves it by
    (learning rate) x (steps) under SGD, and by more under momentum; a proximal term is
    `mu * x - 1`. Where it ends is the mass; None: not computed."""
    start_gradient: bool = False
    """Asks for the gradient over all of the client's examples where it starts."""
    sent_down: Callable[[Variables, Any], PyTree] = lambda variables, shared: (
        variables,
        shared,
    )
    """(variables, shared) -> what a client downloads."""
    sent_up: Callable[[Message], PyTree] = lambda message: message
    """What of a message a client uploads."""


class Measured(NamedTuple):
    """What a rule may ask to know of a client's training; () where it did not ask."""

    mass: Any
    """The gradient mass."""
    start_gradient: Any
    """Gradient of the mean loss over the client's examples, where it started."""


def plain_rule(learner: Learner) -> LocalRule:
    """The learner's loss, plain steps, the difference of weights as the update."""
    return LocalRule(
        init_shared=lambda params: (),
        init_own=lambda context: (),
        begin=lambda context: context.variables,
        loss=lambda variables, batch, key, context: learner.loss(variables, batch, key),
        correct=lambda gradient, params, context: gradient,
        report=lambda context, variables, measured: (
            difference(variables, context.variables),
            (),
        ),
        receive=lambda message, shared, share: (message.update, shared),
    )


def difference(variables: Variables, start: Variables) -> Message:
    """The message of FedAvg: trained minus downloaded variables."""
    params, model_state = split(variables)
    start_params, start_state = split(start)
    return Message(
        jax.tree.map(_subtract, params, start_params),
        jax.tree.map(_subtract, model_state, start_state),
        (),
    )


def _subtract(x: Array, y: Array) -> Array:
    # Half-precision weights differ by little: subtract in the accumulator's precision.
    dtype = accumulator_dtype(x.dtype)
    return x.astype(dtype) - y.astype(dtype)


def split(variables: Variables) -> tuple[PyTree, Variables]:
    """(params, model state), without what is frozen."""
    state = moving(variables)
    return state.pop("params"), state


def joined(params: PyTree, model_state: PyTree, server: Variables) -> Variables:
    """The inverse of `split`, with what the server's variables have frozen."""
    return {**frozen(server), "params": params, **model_state}
