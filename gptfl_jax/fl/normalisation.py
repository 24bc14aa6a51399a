"""What becomes of batch statistics in a federation.

With label-skewed clients each client's batches have other means and variances, so that
a policy must be chosen. All keep them away from the server optimizer:

- "average": clients train with batch statistics, the running ones are averaged with the
  weights of the updates;
- "local": FedBN: On Federated Learning on Non-IID Features via Local Batch
  Normalization (arXiv 2102.07623): every client keeps the statistics, scales and biases
  of its batch norms to itself. The server's stay as they were; test clients with
  theirs (`gptfl_jax.fl.personalisation`);
- "freeze": clients train with the running statistics they were sent, and nobody changes
  them, as usual in fine-tuning.

The fourth way is a model without them: norm "group" of the models that have it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gptfl_jax import nn
from gptfl_jax.fl.client_rules import Context, LocalRule, split
from gptfl_jax.training import Learner, Variables

POLICIES = ("average", "local", "freeze")


def apply_policy(rule: LocalRule, policy: str) -> LocalRule:
    """The rule with batch statistics treated as `policy` says.

    Raises:
        ValueError: an unknown policy.
    """
    if policy == "average":
        return rule
    if policy == "local":
        return _keep_local(rule)
    if policy == "freeze":
        return rule._replace(loss=_freeze(rule.loss))
    raise _unknown(policy)


def at_server(learner: Learner, policy: str) -> Learner:
    """The learner for steps at the server, which leave what `policy` says stays.

    Under "local" these are all norms, which normalise by the server's batches.

    Raises:
        ValueError: an unknown policy.
    """
    if policy == "average":
        return learner
    if policy == "local":
        return learner._replace(loss=_without_norms(learner.loss))
    if policy == "freeze":
        return learner._replace(loss=_freeze(learner.loss))
    raise _unknown(policy)


def _unknown(policy: str) -> ValueError:
    takes = ", ".join(map(repr, POLICIES))
    return ValueError(f"batch_norm {policy!r}: takes {takes}")


def _keep_local(rule: LocalRule) -> LocalRule:
    def personal(context: Context) -> Context:
        """What the rule sees: the server's weights with the client's own norms."""
        own, norms = context.own
        return Context(_with_norms(context.variables, norms), context.shared, own)

    def init_own(context: Context) -> Any:
        return rule.init_own(context), _norms(context.variables)

    def report(context: Context, variables: Variables, measured: Any):
        message, own = rule.report(personal(context), variables, measured)
        _, model_state = split(variables)
        update = _map_norms(lambda x: None, message.update, model_state)
        nothing = jax.tree.map(jnp.zeros_like, message.model_state)
        message = message._replace(update=update, model_state=nothing)
        return message, (own, _norms(variables))

    def sent_down(variables: Variables, shared: Any) -> PyTree:
        params, model_state = split(variables)
        params = _map_norms(lambda x: None, params, model_state)
        return rule.sent_down({"params": params}, shared)

    return rule._replace(
        init_own=init_own,
        begin=lambda context: rule.begin(personal(context)),
        loss=lambda variables, batch, key, context: rule.loss(
            variables, batch, key, personal(context)
        ),
        correct=lambda gradient, params, context: rule.correct(
            gradient, params, personal(context)
        ),
        report=report,
        sent_down=sent_down,
        sent_up=lambda message: rule.sent_up(message._replace(model_state=())),
    )


def _map_norms(f: Callable[[Array], Any], params: PyTree, model_state: PyTree):
    """Applies `f` to the params of modules that have batch statistics."""
    statistics = jax.tree_util.tree_leaves_with_path(model_state.get("batch_stats", {}))
    modules = {path[:-1] for path, _ in statistics}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: f(x) if path[:-1] in modules else x, params
    )


def _norms(variables: Variables) -> tuple[PyTree, PyTree]:
    """(params of the norms, None elsewhere; model state)."""
    params, model_state = split(variables)
    others = _map_norms(lambda x: None, params, model_state)
    norms = jax.tree.map(
        lambda x, other: x if other is None else None,
        params,
        others,
        is_leaf=lambda x: x is None,
    )
    return norms, model_state


def _with_norms(variables: Variables, norms: tuple[PyTree, PyTree]) -> Variables:
    params = jax.tree.map(
        lambda x, own: x if own is None else own,
        variables["params"],
        norms[0],
        is_leaf=lambda x: x is None,
    )
    return {**variables, "params": params, **norms[1]}


def _without_norms(loss: Callable[..., tuple[Array, PyTree]]):
    """A loss without a gradient for norms, which leaves their statistics."""

    def without(variables, *others):
        params, model_state = split(variables)
        params = _map_norms(jax.lax.stop_gradient, params, model_state)
        value, _ = loss({**variables, "params": params}, *others)
        return value, model_state

    return without


def _freeze(loss: Callable[..., tuple[Array, PyTree]]):
    """A loss by the running statistics, which it leaves as they are."""

    def frozen(variables, *others):
        with flax.linen.intercept_methods(_evaluation_mode):
            value, _ = loss(variables, *others)
        return value, split(variables)[1]

    return frozen


def _evaluation_mode(call, args, kwargs, context):
    """Calls batch norms, and only them, as in evaluation."""
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    if isinstance(context.module, nn.BatchNorm):
        if not context.module.track_running_stats:
            return call(*args, **kwargs)
        return call(args[0] if args else kwargs["inputs"], train=False)
    if isinstance(context.module, flax.linen.BatchNorm):
        # Its constructor and its call may not both say so. Modules are frozen.
        said = context.module.use_running_average
        object.__setattr__(context.module, "use_running_average", None)
        try:
            return call(*args[:1], **{**kwargs, "use_running_average": True})
        finally:
            object.__setattr__(context.module, "use_running_average", said)
    return call(*args, **kwargs)
