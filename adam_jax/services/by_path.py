"""Groups of parameters, by where they are in the tree, under one optimizer with one state.

    u = learning_rate factor * u(weight_decay factor * rate), leaf by leaf

A rule is a pattern and what is done to the leaves that it is the first to match.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from adam_jax.averaging import AverageParamsState
from adam_jax.hyperparameters import Scalar, flag, is_zero, transformation
from adam_jax.mismatch import require_gradients
from adam_jax.precision import KahanSummationState, MasterWeightsState, StochasticRoundingState
from adam_jax.services import path_rules
from adam_jax.services.path_rules import FREEZE, Assignment, Rule, Rules, Scale, is_one
from adam_jax.states import like, with_gradient
from adam_jax.transform import wide_gradients

_keystr = jax.tree_util.keystr


def by_path(rules: Rules, *, allow_unused: bool = False) -> "ByPath":
    """Other learning rates, other weight decay, or another optimizer for some of the leaves.

    ``by_path(rules)(inner)`` is ``inner`` under rules; ``by_path(rules).describe(params)`` tells
    which leaves each of them takes, before any step. The first rule that matches a leaf takes it;
    what none takes is under ``inner`` as it is. The state is that of ``inner``, unless a rule
    freezes leaves or has its own optimizer; then it is that of `optax.partition`.

    A learning rate's factor multiplies the whole update of a leaf, decay in it included, as in
    PyTorch's groups: a `decay.proximal` step too, and decay that is else `decay.independent` of the
    learning rate, which a weight decay's factor of one over it undoes. It does so in float32, and
    the product is rounded once. So transformations that round, such as `master_weights`, or take a
    step for the one that is made, as `average_params`, belong outside:
    ``master_weights(by_path(rules)(inner))``.

    A weight decay's factor is one on the rate, for each form of `adam_jax.decay`. It reaches the
    optimizers of this package through any wrapper that passes extra arguments on. (Those that do
    not, as ``optax.MultiSteps(...).gradient_transformation()``, belong outside.)

    Args:
      rules: pairs of a pattern and an action, or a mapping of them, in order. A pattern is a
        regular expression, searched for in the leaf's name, which has slashes
        (``layers/0/kernel``), or a function ``(path, leaf) -> bool``, as in `adam_jax.leaves`. Of
        the leaf it sees shape and dtype: the parameter's, or without parameters, the gradient's. An
        action is a `Scale`, `FREEZE`, or an Optax transformation, for these leaves in place of
        ``inner``.
      allow_unused: whether a rule may take no leaf.

    Returns:
      A function from an optimizer to one, with ``describe(params)`` and ``labels(params)``.

    Raises:
      ValueError: a pattern is no regular expression; from ``init``, a rule takes no leaf; from
        ``update``, nothing in ``inner`` takes a weight decay's factor that is not 1.
      TypeError: a pattern or an action is of another kind.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> from adam_jax.leaves import is_bias
      >>> groups = by_path({
      ...     "^backbone/": Scale(learning_rate=0.1),
      ...     is_bias: Scale(weight_decay=0.0),
      ...     "^embed": FREEZE,
      ... })
      >>> layer = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
      >>> params = {"embed": jnp.ones((50, 8)), "backbone": [layer, layer], "head": layer}
      >>> print(groups.describe(params))
      rule        action               leaves  parameters  names
      ^backbone/  learning_rate * 0.1       4         144  backbone/*/bias, backbone/*/kernel
      is_bias     weight_decay * 0          1           8  head/bias
      ^embed      frozen                    1         400  embed
      (none)      as it is                  1          64  head/kernel
      >>> tx = groups(adam_jax.adamw(3e-4, weight_decay=0.1))
      >>> state = tx.init(params)
    """
    return ByPath(path_rules.parse(rules), flag("allow_unused", allow_unused))


@dataclass(frozen=True)
class ByPath:
    """Rules that wait for their optimizer. `by_path` makes them."""

    rules: tuple[Rule, ...]
    allow_unused: bool

    def __call__(
        self, inner: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer ``inner`` under these rules."""
        both = self._scaled(optax.with_extra_args_support(transformation("inner", inner)))
        own = {self._label(index): rule.action for index, rule in enumerate(self.rules)}

        def parted(tree: optax.Params) -> optax.GradientTransformationExtraArgs:
            if not own.keys() - {"shared"}:
                return both
            labels = self.labels(tree)
            # As a function, for a tree such as an Equinox module may be one itself.
            return optax.partition({**own, "shared": both}, lambda _: labels)

        def init(params: optax.Params) -> Any:
            if not self.allow_unused:
                path_rules.require_used(self.rules, params)
            return parted(params).init(params)

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
        ) -> tuple[optax.Updates, Any]:
            require_gradients(updates, params)
            if params is not None:
                # What has no gradient may be anything, which Optax's masks do not let pass.
                params = with_gradient(updates, params)
            inside = parted(updates if params is None else params)
            steps, new = inside.update(updates, state, params, **extra)
            return steps, like(new, state)

        return optax.GradientTransformationExtraArgs(init, update)

    def labels(self, params: optax.Params) -> Any:
        """What each leaf is under: "shared", "frozen", or "rule_2" where the second has its own."""
        labels = [self._label(index) for index, _, _ in path_rules.taken(self.rules, params)]
        return jax.tree.unflatten(jax.tree.structure(params), labels)

    def describe(self, params: optax.Params) -> Assignment:
        """Which rule takes which leaf; the parameters may also be of `jax.ShapeDtypeStruct`."""
        return path_rules.describe(self.rules, params)

    def _label(self, index: int | None) -> str:
        if index is None or isinstance(self.rules[index].action, Scale):
            return "shared"
        return "frozen" if self.rules[index].action == FREEZE else f"rule_{index + 1}"

    def _scales(self, tree: Any) -> list[Scale]:
        """Of a tree whose leaves are all under the shared optimizer."""
        indices = [index for index, _, _ in path_rules.taken(self.rules, tree)]
        return [Scale() if index is None else self.rules[index].action for index in indices]

    def _scaled(
        self, inner: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """The shared optimizer, with the factors of each leaf."""

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
        ) -> tuple[optax.Updates, Any]:
            scales = self._scales(updates if params is None else params)
            decay = _DecayScale(updates, scales, extra.pop("weight_decay_scale", None))
            if decay.matters:
                extra["weight_decay_scale"] = decay
            steps, state = inner.update(updates, state, params, **extra)
            decay.require_asked()
            leaves, treedef = jax.tree.flatten(steps)
            pairs = zip(leaves, scales, strict=True)
            leaves = [_times(u, scale.learning_rate) for u, scale in pairs]
            return jax.tree.unflatten(treedef, leaves), state

        both = optax.GradientTransformationExtraArgs(inner.init, update)
        actions = [rule.action for rule in self.rules]
        if all(is_one(a.learning_rate) for a in actions if isinstance(a, Scale)):
            return both

        def init(params: optax.Params) -> Any:
            state = inner.init(params)
            _require_none_final(state)
            return state

        return wide_gradients(optax.GradientTransformationExtraArgs(init, update))


class _DecayScale:
    """What ``weight_decay_scale`` is: factors by path, and which of them have been asked for.

    Who knows nothing of an extra argument ignores it: that has to be noticed.
    """

    def __init__(self, updates: Any, scales: Sequence[Scale], outer: "_DecayScale | None") -> None:
        names, self.outer, self.asked = _names(updates), outer, set[str]()
        own = [scale.weight_decay for scale in scales]
        self.factors: dict[str, Any] = dict(zip(names, own, strict=True))
        if outer is not None:  # of rules around these
            self.factors = {k: _times(x, outer.factors[k]) for k, x in self.factors.items()}
            # What comes to 1 nobody has to ask for.
            outer.asked.update(name for name, x in self.factors.items() if is_one(x))

    @property
    def matters(self) -> bool:
        return not all(map(is_one, self.factors.values()))

    def __call__(self, tree: Any, whole: Any = None) -> Any:
        """The factors for a tree, which may be a part of the one that they are of.

        Or it is what a mask takes of the ``whole``, which for the rest then comes to a factor of 0.
        """
        names = _names(tree)
        for name in names:
            if name not in self.factors:
                raise ValueError(f"no `weight_decay` factor for params{name}, inside of by_path")
        self.asked.update(names)
        self.asked.update(k for k in _names(whole) if is_zero(self.factors.get(k, 1.0)))
        if self.outer is not None:
            self.outer(tree, whole)  # has been asked too
        factors = [self.factors[name] for name in names]
        return jax.tree.unflatten(jax.tree.structure(tree), factors)

    def require_asked(self) -> None:
        for name, factor in self.factors.items():
            if not is_one(factor) and name not in self.asked:
                raise ValueError(
                    f"params{name} has a `weight_decay` factor, and the optimizer inside no decay"
                    " that takes one; use one of adam_jax with `weight_decay`, or a mask"
                )


# Of what takes a step for the one that is made, and what it does with it.
_FINAL = {
    AverageParamsState: "averages",
    KahanSummationState: "rounds",
    MasterWeightsState: "rounds",
    StochasticRoundingState: "rounds",
}


def _require_none_final(state: Any) -> None:
    """Check that nothing inside takes a step for the one that is made, which a factor changes.

    Raises:
      ValueError: something does.
    """
    for part in jax.tree.leaves(state, is_leaf=lambda x: type(x) in _FINAL):
        if type(part) in _FINAL:
            name, does = type(part).__name__.removesuffix("State"), _FINAL[type(part)]
            raise ValueError(f"{name} {does} steps: it belongs outside of by_path, not inside")


def _names(tree: Any) -> list[str]:
    return [_keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _times(x: Any, factor: Scalar) -> Any:
    return x if is_one(factor) else x * factor
