'''What a problem is, and how one is read from a file.

A problem is a Python file. The race needs three names of it:

| name | what it is |
|---|---|
| `init(key) -> params` | the first parameters, a tree of floating-point arrays |
| `loss(params, batch) -> scalar` | what is minimised; JAX differentiates, maps and compiles it |
| `data` and `batch_size` | a tree of arrays that share their first axis, shuffled for each epoch |

Where data is not arrays in memory, a function takes the place of the last row:

| name | what it is |
|---|---|
| `batches(key) -> iterable` | the batches of one epoch, trees of arrays all of one shape |

It is called for each epoch and seed, and again for each entrant: make it a function of the key
alone, and all entrants see the same data. A batch is whatever the loss needs; one that draws random
numbers (dropout, a rollout) gets a key as a part of its batch.

The rest may be left out:

| name | what it is | default |
|---|---|---|
| `evaluate(params) -> {name: number}` | figures for the table, once a run, outside `jit` | none |
| `epochs` | how often to go through the batches | 10 |
| `learning_rates` | what to try: a list of numbers, or text such as `"1e-4:1:9"` | `"1e-4:1:9"` |
| `target` | the training loss that counts as solved | 10% above the lowest final loss |
| `samples(params) -> {caption: sample}` | what the report shows of a run, outside `jit` | none |
| `seconds` | what Adam's race of all this takes, where that was measured | none |

A sample is text, or a picture: an array of two dimensions, from 0 (black) to 1 (white). The first
line of the file's docstring says in the report what the problem is.

Example: a line through noisy points. `adam_jax/race/problems/` has real ones.

    """Least squares in three dimensions."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (512, 3))
    data = (x, x @ jnp.array([1.0, -2.0, 3.0]))
    batch_size = 64

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    def loss(params, batch):
        x, y = batch
        return jnp.mean((x @ params["w"] - y) ** 2)
'''

import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.race import answers, feed, grid, problems
from adam_jax.race.answers import Evaluate, Samples
from adam_jax.race.errors import UsageError, blaming, require
from adam_jax.race.feed import Feed, Tree
from adam_jax.race.modules import existing, load_file

DEFAULT_EPOCHS = 10
DEFAULT_LEARNING_RATES = "1e-4:1:9"


@dataclass(frozen=True)
class Problem:
    """A problem that was read and found sound.

    Attributes:
      name: as the user gave it.
      file: where it is written, for messages.
      init: `key -> params`.
      loss: `(params, batch) -> scalar`.
      feed: where its batches come from.
      items: the structure of an epoch's items, the same for every key.
      steps: batches an epoch.
      evaluate: `params -> {name: number}`, or `None`.
      epochs: how often to go through the batches, unless the user says otherwise.
      learning_rates: those to try, unless the user says otherwise.
      about: what it is, in a line; empty if the file does not say.
      target: the training loss that counts as solved; `None` if that is for the race to find.
      samples: `params -> {caption: text or picture}`, or `None`.
      seconds: what Adam's race with these settings takes, by the file; `None` if it does not say.
    """

    name: str
    file: Path
    init: Callable[[jax.Array], Tree]
    loss: Callable[[Tree, Tree], jax.Array]
    feed: Feed
    items: Any
    steps: int
    evaluate: Evaluate | None
    epochs: int
    learning_rates: tuple[float, ...]
    about: str
    target: float | None
    samples: Samples | None
    seconds: float | None = None

    @property
    def size(self) -> int:
        """The number of its parameters."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def names() -> list[str]:
    """The built-in problems."""
    found = pkgutil.iter_modules(problems.__path__)
    return sorted(module.name.replace("_", "-") for module in found)


def load(problem: str) -> Problem:
    """Reads a built-in problem by its name, or the user's by the path of its file.

    Everything that can be known before the first step is checked here.

    Raises:
      UsageError: if the problem cannot be raced, in one line.
    """
    found = read(problem)
    where = found.file.name
    params = found.init(jax.random.key(0))
    items = found.feed.epoch(jax.random.key(0))
    _check_loss(found.loss, params, found.feed, items, where, found.file)
    if found.evaluate:
        found.evaluate(params)
    return found


def read(problem: str) -> Problem:
    """What a problem's file says, without running what it trains: enough to list it.

    Raises:
      UsageError: if a name in it is missing or has no sense, in one line.
    """
    module = _module(problem)
    file = Path(module.__file__ or problem)
    where = file.name
    init = _function(module, where, "init")
    loss = _function(module, where, "loss")
    evaluate = _optional(module, where, "evaluate")
    samples = _optional(module, where, "samples")
    source = _feed(module, where, file)
    items = source.epoch(jax.random.key(0))
    return Problem(
        name=problem,
        file=file,
        init=lambda key: _params(init, key, where, file),
        loss=loss,
        feed=source,
        items=feed.structure(items),
        steps=jax.tree.leaves(items)[0].shape[0],
        evaluate=answers.figures(evaluate, where, file) if evaluate else None,
        epochs=_epochs(module, where),
        learning_rates=_learning_rates(module, where),
        about=(module.__doc__ or "").strip().partition("\n")[0],
        target=_number(module, where, "target"),
        samples=answers.samples(samples, where, file) if samples else None,
        seconds=_seconds(module, where),
    )


def check(problem: str) -> None:
    """Makes sure that there is such a problem, without reading it."""
    if problem in names():
        return
    if not problem.endswith(".py"):
        known = ", ".join(names())
        raise UsageError(f"problem must be a Python file (.py) or one of {known}; got {problem!r}")
    existing(problem)


def _module(problem: str) -> ModuleType:
    check(problem)
    if problem in names():
        return require(f"{problems.__name__}.{problem.replace('-', '_')}")
    return load_file(Path(problem))


def _function(module: ModuleType, where: str, name: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        state = "has no" if found is None else "must be a function:"
        raise UsageError(f"{where}: {state} `{name}`")
    function: Callable[..., Any] = found
    return function


def _optional(module: ModuleType, where: str, name: str) -> Callable[..., Any] | None:
    given = getattr(module, name, None) is not None
    return _function(module, where, name) if given else None


def _feed(module: ModuleType, where: str, file: Path) -> Feed:
    if hasattr(module, "batches") == hasattr(module, "data"):
        raise UsageError(f"{where}: must have either `batches`, or `data` and `batch_size`")
    if hasattr(module, "batches"):
        return feed.from_batches(_function(module, where, "batches"), where, file)
    if not hasattr(module, "batch_size"):
        raise UsageError(f"{where}: has `data` but no `batch_size`")
    return feed.from_arrays(module.data, module.batch_size, where)


def _params(init: Callable[[jax.Array], Tree], key: jax.Array, where: str, file: Path) -> Tree:
    with blaming(f"{where}: `init` failed", file):
        params = jax.tree.map(jnp.asarray, init(key))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        raise UsageError(f"{where}: `init` must return parameters, got none")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = f"params{jax.tree_util.keystr(path)}"
            raise UsageError(f"{where}: {name} must be floating-point, got {leaf.dtype}")
    return params


def _check_loss(
    loss: Callable[[Tree, Tree], Any],
    params: Tree,
    source: Feed,
    items: Tree,
    where: str,
    file: Path,
) -> None:
    def first(params: Tree, data: Tree, items: Tree) -> Any:
        return loss(params, source.pick(data, jax.tree.map(lambda item: item[0], items)))

    with blaming(f"{where}: `loss` failed", file):
        result = jax.eval_shape(first, params, source.data, items)
    rule = f"{where}: `loss` must return a floating-point scalar"
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise UsageError(f"{rule}, got {type(result).__name__}")
    if result.shape or not jnp.issubdtype(result.dtype, jnp.floating):
        raise UsageError(f"{rule}, got {result.dtype}{list(result.shape)}")


def _number(module: ModuleType, where: str, name: str) -> float | None:
    found = getattr(module, name, None)
    if found is None:
        return None
    rule = f"{where}: `{name}` must be a finite number"
    with blaming(rule):
        number = float(found)
    if not math.isfinite(number):
        raise UsageError(f"{rule}, got {found!r}")
    return number


def _seconds(module: ModuleType, where: str) -> float | None:
    seconds = _number(module, where, "seconds")
    if seconds is not None and seconds <= 0:
        raise UsageError(f"{where}: `seconds` must be positive, got {seconds!r}")
    return seconds


def _epochs(module: ModuleType, where: str) -> int:
    epochs = getattr(module, "epochs", DEFAULT_EPOCHS)
    return feed.positive_integer(epochs, f"{where}: `epochs`")


def _learning_rates(module: ModuleType, where: str) -> tuple[float, ...]:
    rates = getattr(module, "learning_rates", DEFAULT_LEARNING_RATES)
    return grid.learning_rates(rates, f"{where}: `learning_rates`")
