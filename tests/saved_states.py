"""States of the whole family for tests of checkpoints: filled at random, so that nothing is alike.

As a program it makes the stored checkpoint of the layout's present version, which later releases
must still restore; see `tests/fixtures`:

    python tests/saved_states.py tests/fixtures/states_1.zip
"""

import json
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from family import FORMATS, MEMBERS

import adam_jax

SEED = 0
SHAPES = {"w": (2, 4), "s": ()}
# What later releases must restore: each format, and each kind of state.
STORED = {
    "eight_bit": ["adam", "amsgrad"],
    "four_bit": ["adan"],
    "float8": ["ademamix"],
    "bfloat16": ["lion"],
    "default": ["adam_mini", "mars"],
}


def abstract(shapes=None, dtype="float32"):
    """Parameters, of which nothing is allocated."""
    shapes = SHAPES if shapes is None else shapes
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def optimizers(names, form):
    return [MEMBERS[name].optimizer(0.1, **FORMATS[form].arguments) for name in names]


def whole_family(form):
    """Every member, one after another."""
    return optax.chain(*optimizers([name for name in MEMBERS if not MEMBERS[name].variant], form))


def some_of_each():
    """Members in all formats, in groups and under services."""
    members = [tx for form, names in STORED.items() for tx in optimizers(names, form)]
    groups = adam_jax.by_path({"^s": adam_jax.FREEZE})
    tx = optax.chain(adam_jax.clip_by_global_norm(1.0), groups(optax.chain(*members)))
    numbers = adam_jax.with_hyperparameters(lambda b2: adam_jax.adam(0.1, b2=b2), b2=0.999)
    return adam_jax.skip_unstable(adam_jax.accumulate(optax.chain(tx, numbers), 2), threshold=6.0)


def filled(tx, params, seed=SEED):
    """A state of this optimizer in which each byte is drawn, and each float is finite."""
    rng = np.random.default_rng(seed)

    def fill(x):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            draw = rng.normal(size=x.shape) + (
                1j * rng.normal(size=x.shape) if x.dtype.kind == "c" else 0
            )
            return jnp.asarray(np.asarray(draw).astype(x.dtype))
        return jnp.asarray(rng.integers(0, 2 if x.dtype == bool else 100, x.shape).astype(x.dtype))

    return jax.tree.map(fill, jax.eval_shape(tx.init, params))


def main(file):
    """Save them, and pack what lies in the folder in one file, but for where it was written."""
    with (
        tempfile.TemporaryDirectory() as made,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        folder = Path(made) / "states"
        adam_jax.checkpoint.save(folder, filled(some_of_each(), abstract()))
        for path in sorted(folder.rglob("*")):
            if path.name != "commit_success.txt":
                packed.write(path, path.relative_to(folder))
        names = ("adam_jax", "jax", "optax", "orbax-checkpoint", "numpy")
        made_by = {"seed": SEED} | {name: version(name) for name in names}
        packed.writestr("made_by.json", json.dumps(made_by))


if __name__ == "__main__":
    main(sys.argv[1])
