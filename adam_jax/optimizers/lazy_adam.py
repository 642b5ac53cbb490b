"""Adam for tables of which a step touches a few rows, and for all else beside them."""

from typing import Any

from adam_jax.decay import Mask, Rate
from adam_jax.hyperparameters import Scalar, function, is_zero, one_of, scalar_or_schedule
from adam_jax.lazy import Lazy, LazyAdam
from adam_jax.leaves import Predicate, is_embedding
from adam_jax.rules.adam import Adam
from adam_jax.skipped import Rates
from adam_jax.storage import choice_of


def lazy_adam(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
    *,
    catch_up: str = "none",
    tables: Predicate = is_embedding,
    nesterov: bool = False,
    eps_hat: bool = False,
    nu_dtype: Any = None,
    seed: Any = 0,
) -> LazyAdam:
    """Adam, whose step costs the rows that it touches, and not the table.

    A gradient of a table is `Rows`, as `value_and_row_grad` makes them, and so is then its update,
    which `optax.apply_updates` adds in place where the step is donated (on CPUs with
    `compiler_options`, or 4 bytes a row are copied). Other rows, and their
    moments, stay as they are to the bit. An array is a gradient of all rows. All else beside
    tables is stepped as by `adam` or `adamw`.

    What becomes of the steps that a row skips is ``catch_up``:

    * ``"none"``: nothing. Moments wait, and are decayed by steps with the row alone: PyTorch's
      ``SparseAdam`` (with ``eps_hat=True``) and TensorFlow's ``LazyAdam``.
    * ``"decay"``: when the row is next touched, its moments are first decayed by ``b**n`` for the n
      steps skipped. So they, and the step, are Adam's, but for how the row would have moved.
    * ``"exact"``: it also moves as Adam would have moved it, by its momentum, and by its decay.
      That is up to the rounding of the sums, however large n: terms are left out that are less,
      together, than the rounding of the first. It costs up to 207 times the arithmetic of the
      rows touched, as many times as the longest skip if that is shorter; b1 >= sqrt(b2), or traced
      ones, have no such limit. Schedules count in each step skipped: with weight decay they are
      computed once for each step since the longest skip began, whatever the number of rows. One
      cannot differentiate through it in reverse.

    With ``"exact"`` a row is where Adam has it only after it has caught up. Let rows that a step
    reads catch up before it does: ``params, state = tx.catch_up(params, state, indices)``; and all
    in the end, before tables are read otherwise: ``tx.catch_up(params, state)``, which costs as a
    step of Adam, or more. It also tells an export, as `adam_jax.interop`'s, that moments are as of
    the last step; with ``"none"`` that is all it does.

    Args:
      learning_rate: as in `adam`.
      b1: decay rate of the mean gradient.
      b2: decay rate of the mean square.
      eps: added to the root.
      eps_root: added under the root.
      mu_dtype: how the mean gradient rests. Rows are quantised apart; a table of one column has
        float32 moments where a format of blocks was wanted.
      weight_decay: as in `adamw`, by the learning rate; of tables only rows that are touched decay,
        and with ``"exact"`` in the steps skipped too, where a step takes less than all.
      mask: which leaves decay, as in `adamw`.
      catch_up: ``"none"``, ``"decay"`` or ``"exact"``.
      tables: ``(path, leaf) -> bool``: which parameters are tables. They cost 4 bytes a row.
      nesterov: whether the mean looks one step ahead.
      eps_hat: whether eps is TensorFlow's and PyTorch's ``SparseAdam``'s.
      nu_dtype: how the mean square rests.
      seed: the seed of formats that round by chance.

    Returns:
      An Optax transformation, with a method `LazyAdam.catch_up`.

    Raises:
      ValueError: an argument is out of its range; from ``update`` a gradient does not fit, or is
        `Rows` where there is no table; from ``init`` a table is sharded on an Explicit mesh,
        before JAX 0.10. The error names the leaf.
      IndexError: a row's index is known, and out of range.
      TypeError: an argument is of the wrong kind, or a moment of a table is not stored by rows.

    References:
      Kingma & Ba 2015, as `adam`; PyTorch's ``SparseAdam``,
      https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from adam_jax import Rows
      >>> tx = lazy_adam(0.1)
      >>> params = {"embedding": jnp.zeros((3, 2)), "w": jnp.zeros(2)}
      >>> rows = Rows(jnp.array([2]), jnp.ones((1, 2)), size=3)
      >>> gradients = {"embedding": rows, "w": jnp.ones(2)}
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> for row in optax.apply_updates(params, updates)["embedding"]:
      ...     print([f"{x:.4f}" for x in row])
      ['0.0000', '0.0000']
      ['0.0000', '0.0000']
      ['-0.1000', '-0.1000']
    """
    decay = scalar_or_schedule("weight_decay", weight_decay)
    decays = callable(decay) or not is_zero(decay)
    lazy = Lazy(
        Adam(b1, b2, eps, eps_root, nesterov, eps_hat),
        Rates(scalar_or_schedule("learning_rate", learning_rate), decay if decays else None),
        mask,
        (choice_of("mu_dtype", mu_dtype), choice_of("nu_dtype", nu_dtype)),
        seed,
        one_of("catch_up", catch_up, ("none", "decay", "exact")),
        function("tables", tables),
    )
    return LazyAdam.of(lazy)
