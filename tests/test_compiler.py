"""What the compiler makes of a step: copies, temporaries, kernels. Counts, and no times."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from adam_jax import compiler, storage, transform

KNOWN = jax.__version_info__ >= (0, 6)  # before, JAX has not all of the options
FORMATS = {
    "bfloat16": storage.bfloat16,
    "eight_bit": storage.eight_bit,
    "four_bit": storage.four_bit,
    "float8": storage.float8,
}


def compiled(make, shapes, options):
    tx = adam_jax.adam(1e-3, mu_dtype=make(), nu_dtype=make())

    def step(params, gradients, state):
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(params, updates), state

    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    jitted = jax.jit(step, donate_argnums=(0, 2), compiler_options=options)
    return jitted.lower(params, params, jax.eval_shape(tx.init, params)).compile()


def test_options_are_for_cpus_and_known_to_this_jax():
    options = adam_jax.compiler_options()
    if KNOWN:
        assert set(options) == set(compiler._CPU)
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_unknown_options_are_left_out(monkeypatch):
    monkeypatch.setitem(compiler._CPU, "xla_no_such_option", True)
    assert "xla_no_such_option" not in adam_jax.compiler_options()


def test_other_backends_need_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert adam_jax.compiler_options() == {}


@pytest.mark.costly
@pytest.mark.skipif(not KNOWN, reason="the options are not all known to this JAX")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(256, 1024), (256, 1000), (2**18,)], ids=str)
def test_small_moments_are_updated_in_place(kind, shape):
    """No copies, and temporaries of at most two leaves' float32 moments, of eight leaves."""
    program = compiled(FORMATS[kind], [shape] * 8, adam_jax.compiler_options())
    leaf = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    assert re.findall(r"\bcopy\(", program.as_text()) == []
    assert (
        program.memory_analysis().temp_size_in_bytes <= (0.01 if kind == "bfloat16" else 1) * leaf
    )


@pytest.mark.skipif(not KNOWN, reason="the options are not all known to this JAX")
def test_without_the_options_moments_are_copied():
    """What they are for; and the count above can fail."""
    program = compiled(storage.bfloat16, [(2**18,)], None)
    assert len(re.findall(r"\bcopy\(", program.as_text())) == 2


def kernels(leaves):
    """The different bodies of fused loops, names and metadata apart."""
    text = compiled(storage.bfloat16, [(4096,)] * leaves, None).as_text()
    bodies = re.findall(r"^%fused_computation[^{]*\{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert len(bodies) >= 3 * leaves
    return {re.sub(r"%[\w.-]+|, metadata=\{[^}]*\}", "", body) for body in bodies}


@pytest.mark.skipif(not KNOWN, reason="this JAX cannot keep a call")
def test_leaves_of_one_shape_share_their_kernels():
    """A constant of each leaf's own in a kernel would make it another one for each."""
    assert len(kernels(12)) == len(kernels(6))


def test_a_constant_in_them_would_be_seen(monkeypatch):
    def plain(key, leaves):
        return [key + jnp.uint32(leaf) for leaf in range(leaves)]

    monkeypatch.setattr(transform, "leaf_words", plain)
    assert len(kernels(12)) >= len(kernels(6)) + 6


NAMESAKES = ["adamw", "nadam", "amsgrad", "adamax", "radam", "adabelief", "yogi", "adan", "lion"]


@pytest.mark.costly
@pytest.mark.parametrize("name", [*NAMESAKES, "adopt", "ademamix"])
def test_a_step_has_no_more_temporaries_than_optaxs(name):
    size = 2**16

    def temporaries(module):
        tx = getattr(module, name, None) or getattr(module.contrib, name)
        tx = tx(1e-3)

        def step(params, gradient, state):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        p = jnp.zeros(size)
        lowered = jax.jit(step, donate_argnums=(0, 2)).lower(p, p, tx.init(p))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # But for the scalars of the step.
    assert temporaries(adam_jax) <= temporaries(optax) + 4096
