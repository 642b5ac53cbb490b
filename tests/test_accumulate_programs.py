"""What XLA makes of accumulation, and where it works: any tree, settings, scans, shards."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, assert_traced_once_and_donated, configured
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from training import assert_close, descend, gradients, moved, parameters, stepper

import adam_jax
from adam_jax import storage
from adam_jax.services.accumulate import AccumulateState, accumulate

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # its older place
    from jax.experimental.shard_map import shard_map

KNOWN = jax.__version_info__ >= (0, 6)  # before, JAX has not all of the compiler's options
STRICT = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_check_tracer_leaks": True,
}
SIZE = 2**14


# --- the program ---------------------------------------------------------------------------------


def compiled(update, init, leaves=3, options=None):
    """A donated step with its parameters."""

    def step(params, state, gradient):
        updates, state = update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = [jax.ShapeDtypeStruct((SIZE,), jnp.float32)] * leaves
    jitted = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
    return jitted.lower(params, jax.eval_shape(init, params), params).compile()


def bytes_per_parameter(program, leaves=3):
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost  # until JAX 0.6
    return cost["bytes accessed"] / (leaves * SIZE)


def large_copies(text):
    return re.findall(rf"\[{SIZE}\]\S* copy\(", text)


def entry(program):
    """The part of the program that always runs."""
    return program.as_text().split("\nENTRY ")[1]


@pytest.mark.parametrize("name", ["float32", "eight_bit"])
def test_a_static_micro_step_is_one_addition(name):
    """Reads gradient and accumulator, writes the accumulator; the rest is where it was."""
    each = storage.eight_bit(min_size=0) if name == "eight_bit" else None
    tx = accumulate(adam_jax.adamw(1e-3, mu_dtype=each, nu_dtype=each), 4)
    program = compiled(partial(tx.update, full_step=False), tx.init)
    text = program.as_text()
    assert "sqrt" not in text
    assert "conditional" not in text
    assert large_copies(text) == []
    assert len(re.findall(rf"f32\[{SIZE}\]\S* fusion\(", entry(program))) == 3
    assert bytes_per_parameter(program) == pytest.approx(12, abs=0.1)
    assert program.memory_analysis().temp_size_in_bytes < SIZE


def test_a_full_step_that_is_known_has_no_branches():
    tx = accumulate(adam_jax.adamw(1e-3), 4)
    update = partial(tx.update, full_step=True)
    program = compiled(update, tx.init, options=adam_jax.compiler_options())
    assert "sqrt" in program.as_text()
    assert "conditional" not in program.as_text()
    assert large_copies(program.as_text()) == [] or not KNOWN
    assert program.memory_analysis().temp_size_in_bytes < SIZE or not KNOWN


def test_a_conditional_passes_everything_on_in_place():
    """The addition, the parameters' sum with what is 0, and nothing else; no memory for zeros."""
    tx = accumulate(adam_jax.adamw(1e-3), 4)
    program = compiled(tx.update, tx.init)
    assert "sqrt" not in entry(program)
    assert large_copies(program.as_text()) == []
    assert program.memory_analysis().temp_size_in_bytes < SIZE
    assert len(re.findall(rf"f32\[{SIZE}\]\S* (?:fusion|add)\(", entry(program))) == 2 * 3


def test_zeros_of_their_own_would_take_memory():
    """The twin: the same with a conditional that returns updates and accumulator."""
    tx = accumulate(adam_jax.adamw(1e-3), 4)

    def update(g, state, params):
        def step():
            return tx.update(g, state, params, full_step=True)

        def add():
            return tx.update(g, state, params, full_step=False)

        updates, new = jax.lax.cond(state.micro_step >= 3, step, add)
        return updates, new

    program = compiled(update, tx.init)
    assert program.memory_analysis().temp_size_in_bytes >= 3 * 4 * SIZE


def test_optax_runs_the_optimizer_every_time():
    """The twin of the counts above."""
    multi = optax.MultiSteps(optax.adam(1e-3), 4)
    program = compiled(multi.update, multi.init)
    assert "sqrt" in program.as_text()
    assert bytes_per_parameter(program) > 60


@pytest.mark.skipif(not KNOWN, reason="the options are not all known to this JAX")
@pytest.mark.parametrize("make", [storage.bfloat16, partial(storage.eight_bit, min_size=0)])
def test_low_precision_moments_are_copied_in_full_steps_only(make):
    tx = accumulate(adam_jax.adam(1e-3, mu_dtype=make(), nu_dtype=make()), 4)
    program = compiled(tx.update, tx.init, options=adam_jax.compiler_options())
    assert large_copies(entry(program)) == []
    (passed,) = re.findall(r"branch_computations=\{(\S+), ", entry(program))
    body = program.as_text().split(f"\n{passed} ")[1].split("\n}")[0]
    assert "copy" not in body
    assert "fusion" not in body


# --- any tree, any settings ----------------------------------------------------------------------

TREES = {
    "plain": {"w": jnp.ones((3, 4)), "b": [jnp.ones(4), jnp.ones(())]},
    "None": {"w": jnp.ones(3), "none": None},
    "empty": {},
    "no entries": {"w": jnp.ones((0, 3)), "b": jnp.ones(2)},
    "complex": {"w": jnp.array([1 + 2j, 3 - 1j])},
    "mixed": {"w": jnp.ones(3, jnp.bfloat16), "h": jnp.ones(2, jnp.float16), "f": jnp.ones(2)},
}


def multiple(factor, params):
    return jax.tree.map(lambda p: factor * p, params)


@pytest.mark.costly
@pytest.mark.parametrize("settings", [{}, STRICT], ids=["plain", "strict"])
@pytest.mark.parametrize("name", TREES)
def test_any_tree(name, settings):
    params = TREES[name]
    stream = [multiple(k, params) for k in (1, 2, 3)]
    with configured(settings):
        tx = accumulate(adam_jax.adam(0.1), 2)
        state = tx.init(params)
        assert_same_kind(jax.eval_shape(tx.init, params), jax.eval_shape(lambda: state))
        step = jax.jit(partial(tx.update, full_step=None))
        for count, gradient in enumerate(stream):
            updates, new = step(gradient, state, params)
            assert_same_kind(new, state)
            assert_same_kind(updates, params)
            state = new
            moves = [bool(jnp.any(u)) for u in jax.tree.leaves(updates) if u.size]
            assert set(moves) <= {count == 1}
    expected = jax.tree.map(lambda p: 3 * p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)
    assert_close(state.accumulator, expected)


def test_64_bits(x64):
    params = {"w": jnp.ones(3), "f": jnp.ones(3, jnp.float32), "c": jnp.ones(2, complex)}
    tx = accumulate(adam_jax.adam(0.1), 2)
    state = tx.init(params)
    for gradient in [params] * 2:
        updates, new = jax.jit(tx.update)(gradient, state, params)
        assert_same_kind(new, state)
        assert_same_kind(updates, params)
        state = new
    assert [x.dtype for x in jax.tree.leaves(state.accumulator)] == ["complex128", "f4", "f8"]


def test_donated_and_traced_once():
    params = parameters()
    tx = accumulate(adam_jax.adamw(0.1), 2)
    assert_traced_once_and_donated(tx, params, gradients(1, params)[0])


def test_derivatives_pass():
    def after(rate):
        tx = accumulate(optax.sgd(rate), 2)
        params = jnp.array([1.0, 2.0])
        params, _ = moved(tx, params, [jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])] * 2)
        return jnp.sum(params)

    assert float(jax.grad(after)(0.1)) == -4


# --- where it runs -------------------------------------------------------------------------------


def test_a_scan_over_micro_steps_is_one_program():
    params = parameters()
    tx, stream = accumulate(adam_jax.adamw(0.1), 3), gradients(7, params)

    @jax.jit
    def scanned(carry, stream):
        def body(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, carry, stream)[0]

    stacked = jax.tree.map(lambda *g: jnp.stack(g), *stream)
    result = scanned((params, tx.init(params)), stacked)
    assert int(result[1].full_steps) == 2
    assert_close(result, moved(tx, params, stream), rtol=1e-5, atol=1e-6)


def test_an_ensemble_steps_each_member_in_its_own_time():
    params, stream = jnp.zeros((2, 3)), jnp.arange(1, 7.0)
    weights = jnp.array([[1.0, 1.0], [1.0, 3.0]])

    def ensemble(steps, params, weight, gradients):
        tx = accumulate(optax.sgd(1.0), steps)
        state = tx.init(params)
        for g in gradients:
            updates, state = tx.update(jnp.full(3, g), state, params, weight=weight)
            params = optax.apply_updates(params, updates)
        return params

    steps = jnp.array([2, 3])
    both = jax.vmap(ensemble, in_axes=(0, 0, 0, None))(steps, params, weights[:, 0], stream)
    assert_close(both[:, 0], jnp.array([-10.5, -7.0]))


def mesh():
    assert jax.device_count() == 8
    return Mesh(np.array(jax.devices()), ("x",))


@pytest.mark.parametrize("full", [None, True, False])
def test_each_device_accumulates_its_shard(full):
    params, specs = {"w": jnp.ones((8, 4)), "b": jnp.ones(3)}, {"w": P("x"), "b": P()}
    tx = accumulate(adam_jax.adamw(0.1), 2)
    stream = [multiple(k, params) for k in (1, 2, 4, 5)]
    adam, *rest = jax.tree.map(lambda _: P(), jax.eval_shape(tx.init, params).inner_state)
    inner = adam._replace(mu=specs, nu=specs), *rest
    state = AccumulateState(P(), P(), P(), specs, inner)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *stream)
    rows = jax.tree.map(lambda spec: P(None, *spec), specs, is_leaf=lambda x: isinstance(x, P))

    def run(params, stream):
        def body(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params, full_step=full)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), stream)[0]

    sharded = shard_map(run, mesh=mesh(), in_specs=(specs, rows), out_specs=(specs, state))
    assert_close(jax.jit(sharded)(params, stacked), jax.jit(run)(params, stacked), rtol=1e-6)


@pytest.mark.parametrize("full", [None, True, False])
def test_the_accumulator_lies_with_its_parameter(full):
    sharding = NamedSharding(mesh(), P("x"))
    params = jax.device_put({"w": jnp.ones((8, 4)), "b": jnp.ones(16)}, sharding)
    tx = accumulate(adam_jax.adamw(0.1), 2)
    update = jax.jit(partial(tx.update, full_step=full))
    state = jax.jit(tx.init)(params)
    program = update.lower(params, state, params).compile()
    assert not re.search("all-|collective|reduce-scatter", program.as_text())
    for each in (tx.init(params), state, update(params, state, params)[1]):
        for leaf in jax.tree.leaves(each.accumulator):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2), "`inner` must be an Optax transformation, got 1"),
        ((optax.sgd(1.0), 0), "`steps` must be a positive integer or a schedule, got 0"),
        ((optax.sgd(1.0), 2.0), "`steps` must be a positive integer or a schedule, got 2.0"),
        (
            (optax.sgd(1.0), 2, jnp.int32),
            "`accumulator_dtype` must be None or a floating dtype of 16 bits or more, got",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    inner, steps, *dtype = arguments
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught:
        accumulate(inner, steps, accumulator_dtype=dtype[0] if dtype else None)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("gradient", "options", "message"),
    [
        ({"w": jnp.ones(3)}, {"weight": -1}, "`weight` must be a finite number >= 0, got -1"),
        ({"w": jnp.ones(3)}, {"weight": jnp.ones(2)}, "`weight` must be a real scalar, got"),
        ({"w": jnp.ones(3)}, {"full_step": 1}, "`full_step` must be None, True or False, or a"),
        ({"w": jnp.ones(2)}, {}, "gradient for params['w'] has shape (2,); the parameter has (3,)"),
        ({"w": None}, {}, "no gradient for params['w'], which is in the state"),
        ({"w": jnp.ones(3, complex)}, {}, "gradient for params['w'] is complex64; the state has"),
        ({"w": jnp.ones(3, int)}, {}, "gradient for params['w'] must be floating or complex"),
        ({"v": jnp.ones(3)}, {}, "gradient for params['v']: no such leaf in the parameters"),
    ],
)
def test_bad_updates(gradient, options, message):
    tx = accumulate(optax.sgd(1.0), 2)
    state = tx.init({"w": jnp.ones(3)})
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught:
        tx.update(gradient, state, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_bad_state_and_integers():
    tx = accumulate(optax.sgd(1.0), 2)
    with pytest.raises(TypeError, match="state must be AccumulateState, got tuple"):
        tx.update(jnp.ones(3), ())
    with pytest.raises(TypeError, match=r"params\['n'\] must be floating or complex, got int32"):
        tx.init({"n": jnp.ones(3, jnp.int32)})


def test_numpy_booleans_are_static():
    tx, params = accumulate(optax.sgd(1.0), 5), jnp.zeros(2)
    for full, moves in [(np.bool_(True), -1.0), (np.array(False), 0.0)]:
        updates, _ = tx.update(jnp.ones(2), tx.init(params), full_step=full)
        assert_same_bits(updates, jnp.full(2, moves))
    step = stepper(tx)
    assert int(descend(step, params, tx.init(params), [params] * 5)[1].full_steps) == 1
