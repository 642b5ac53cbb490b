"""Steps that are not taken: as if they had not been, bit for bit, however they are run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, configured
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from layouts import SCANNED
from test_norms import STRICT, shard_map
from training import assert_close, descend, gradients, moved, parameters, stepper

import adam_jax
from adam_jax import storage
from adam_jax.clipping import clip_by_global_norm
from adam_jax.norms import global_norm
from adam_jax.precision import master_weights
from adam_jax.services.skip_unstable import check_stable, skip_unstable

BAD = {"nan": jnp.nan, "inf": jnp.inf, "-inf": -jnp.inf}
EIGHT_BIT = storage.eight_bit(min_size=0)
WARMUP = optax.linear_schedule(0.0, 0.1, 5)
INNER = {
    "adamw": lambda: adam_jax.adamw(WARMUP, weight_decay=0.1),
    "eight_bit": lambda: adam_jax.adam(1e-2, mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT),
    "optax.adam": lambda: optax.adam(1e-2),
    "optax.sgd": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "chain": lambda: optax.chain(
        clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_schedule(WARMUP),
        optax.scale(-1.0),
    ),
    "master_weights": lambda: master_weights(adam_jax.adam(1e-2)),
}
inners = pytest.mark.parametrize("name", INNER)
DTYPE = {"master_weights": jnp.bfloat16}


def spoil(gradient, value):
    """With one entry of one leaf that is not finite."""
    w = gradient["dense"]["w"]
    return gradient | {"dense": gradient["dense"] | {"w": w.at[1, 2].set(value)}}


def spoiled(stream, bad, seed=0):
    """As many bad gradients as there are, at random places between them; and which are bad."""
    flags = np.random.default_rng(seed).permutation([True, False] * len(stream))
    rest = iter(stream)
    return [spoil(stream[0], bad) if flag else next(rest) for flag in flags], flags


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "bad"), [*((name, jnp.nan) for name in INNER), ("chain", jnp.inf), ("chain", -jnp.inf)]
)
def test_a_skipped_step_is_as_if_it_had_not_been(name, bad):
    start = parameters(DTYPE.get(name, jnp.float32))
    stream = gradients(4, start)
    tx = skip_unstable(INNER[name]())
    step = stepper(tx)
    params, state = start, tx.init(start)
    for gradient, skipped in zip(*spoiled(stream, bad), strict=True):
        after, new = step(params, state, gradient)
        assert_same_kind(new, state)
        assert np.isfinite(new.norm) != skipped
        if skipped:
            assert_same_bits((after, new.inner_state), (params, state.inner_state))
        params, state = after, new
    assert int(state.skipped_total) == 4
    # The same program without the bad ones; and unwrapped, where XLA rounds products elsewhere.
    expected, clean = descend(step, start, tx.init(start), stream)
    assert_same_bits((params, state.inner_state), (expected, clean.inner_state))
    alone, _ = moved(INNER[name](), start, stream)
    low = params["scale"].dtype == jnp.bfloat16
    assert_close(params, alone, rtol=2**-7 if low else 2e-5, atol=1e-6)


@pytest.mark.costly
@inners
def test_unwrapped_it_would_be_poisoned(name):
    params = parameters(DTYPE.get(name, jnp.float32))
    (gradient,) = gradients(1, params)
    params, _ = moved(INNER[name](), params, [spoil(gradient, jnp.nan), gradient])
    assert not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))


def test_the_updates_of_a_skipped_step_change_no_bit():
    params = [jnp.array([-0.0, 0.0, 1e-30, -3.0]), jnp.array(complex(-0.0, 1)), jnp.bfloat16(-0.0)]
    tx = skip_unstable(optax.scale(-0.1))
    bad = [jnp.full(4, jnp.nan), jnp.array(1j), jnp.bfloat16(1)]
    updates, _ = tx.update(bad, tx.init(params), params)
    for u in jax.tree.leaves(updates):
        assert jnp.all(u == 0)
        assert jnp.all(jnp.signbit(u.real))
    assert_same_bits(optax.apply_updates(params, updates), params)
    # The twin: +0 makes 0 of -0.
    assert not jnp.signbit(jnp.float32(-0.0) + jnp.float32(0.0))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_loss_that_is_not_finite_is_enough(bad):
    tx, params = skip_unstable(adam_jax.adam(0.1)), jnp.array([1.0, -2.0])
    state = tx.init(params)
    for loss in (1.0, bad, 0.9, bad, bad, 0.8):
        before = state
        updates, state = tx.update(params, state, params, value=loss)
        taken = np.isfinite(loss)
        assert int(state.inner_state[0].count) == int(before.inner_state[0].count) + taken
        assert bool(jnp.any(updates != 0)) == taken
    assert int(state.skipped_total) == 3


def test_a_given_norm_is_taken_and_all_extra_arguments_go_on():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx, g = skip_unstable(inner), jnp.ones(2)
    extra = {"grad_norm": jnp.float32(jnp.inf), "value": 1.0, "foreign": "x"}
    _, state = tx.update(g, tx.init(g), **extra)
    assert seen == extra
    assert int(state.skipped_total) == 1  # though the gradients are finite
    _, state = tx.update(g * jnp.nan, state, grad_norm=1.0)
    assert int(state.skipped_total) == 1
    seen.clear()
    tx.update(g, state)
    assert seen == {}
    with pytest.raises(TypeError, match=r"`value` must be a real scalar, got float32\[2\]"):
        tx.update(g, state, value=g)


def test_under_scan_and_vmap_each_member_is_judged_alone():
    params = jax.tree.map(lambda p: jnp.stack([p, p]), parameters())
    clean, dirty = gradients(6, parameters()), spoiled(gradients(3, parameters()), jnp.nan)[0]
    stream = [
        jax.tree.map(lambda *x: jnp.stack(x), *pair) for pair in zip(clean, dirty, strict=True)
    ]
    tx = skip_unstable(adam_jax.adamw(WARMUP), threshold=6.0)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params, value=jnp.float32(1))
        return (optax.apply_updates(params, updates), state), state.norm

    def run(params, stream):
        return lax.scan(step, (params, tx.init(params)), stream)[0]

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *stream)
    (after, state) = jax.jit(jax.vmap(run, in_axes=(0, 1)))(params, stacked)
    assert state.skipped_total.tolist() == [0, 3]
    assert state.inner_state[0].count.tolist() == [6, 3]
    member = jax.jit(run)(parameters(), jax.tree.map(lambda x: x[:, 1], stacked))
    assert_same_bits(jax.tree.map(lambda x: x[1], (after, state)), member)


@pytest.mark.parametrize("given", [True, False])
def test_over_shards_all_skip_if_the_norm_is_given(given):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    tx = skip_unstable(adam_jax.adam(0.1))
    params, bad = jnp.ones(16), jnp.ones(16).at[3].set(jnp.nan)

    def step(params, gradient):
        norm = jnp.sqrt(lax.psum(jnp.square(global_norm(gradient)), "x")) if given else None
        updates, state = tx.update(gradient, tx.init(params), params, grad_norm=norm)
        total = state.skipped_total
        return params + updates, total if given else total[None]

    specs = {"in_specs": P("x"), "out_specs": (P("x"), P() if given else P("x"))}
    after, skipped = jax.jit(shard_map(step, mesh=mesh, **specs))(params, bad)
    if given:
        assert_same_bits(after, params)
        assert int(skipped) == 1
    else:  # the twin: the shards' steps differ
        assert skipped.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def common(x):
    return jnp.sqrt(lax.psum(jnp.square(x), "x"))


def test_over_shards_a_scan_skips_the_same_steps_where_loss_and_norm_are_common():
    """One shard's gradient is huge in one step, and one shard's loss NaN in another."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    tx, params = skip_unstable(adam_jax.adam(0.1), threshold=6.0), jnp.ones(16)
    stream = jnp.ones((24, 16)).at[20, 3].set(1e10)
    losses = jnp.ones((24, 8)).at[22, 5].set(jnp.nan)

    def step(carry, x):
        (params, state), (gradient, loss) = carry, x
        known = {"value": lax.pmean(loss[0], "x"), "grad_norm": common(global_norm(gradient))}
        updates, state = tx.update(gradient, state, params, **known)
        return (params + updates, state), state.skipped_total

    def train(params, *stream):
        (params, _), skipped = lax.scan(step, (params, tx.init(params)), stream)
        return params, skipped

    over = {"in_specs": (P("x"), P(None, "x"), P(None, "x")), "out_specs": (P("x"), P())}
    after, skipped = jax.jit(shard_map(train, mesh=mesh, **over, **SCANNED))(params, stream, losses)
    assert skipped.tolist() == np.repeat([0, 1, 2], [20, 2, 2]).tolist()
    np.testing.assert_array_equal(after, np.full(16, after[0]))
    assert after[0] == pytest.approx(1 - 22 * 0.1, rel=1e-5)


def test_over_shards_a_loss_of_ones_own_skips_a_step_of_ones_own():
    mesh, tx = Mesh(np.array(jax.devices()), ("x",)), skip_unstable(adam_jax.adam(0.1))
    losses = jnp.ones(8).at[5].set(jnp.nan)

    def step(params, loss):
        norm = common(global_norm(params))
        _, state = tx.update(params, tx.init(params), params, value=loss[0], grad_norm=norm)
        return state.skipped_total[None]

    over = {"in_specs": (P("x"), P("x")), "out_specs": P("x")}
    skipped = jax.jit(shard_map(step, mesh=mesh, **over))(jnp.ones(16), losses)
    assert skipped.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def run(tx, flags):
    """For each step whether it was taken, of gradients that are bad where a flag is set."""
    state = tx.init(jnp.ones(()))
    step = jax.jit(lambda state, g: tx.update(g, state)[1])
    taken, states = [], []
    for bad in flags:
        new = step(state, jnp.where(bad, jnp.nan, 1.0))
        taken.append(int(new.skipped_total) == int(state.skipped_total))
        state = new
        states.append(state)
    return taken, states


def test_lets_through_after_as_many_in_a_row_and_counts_anew():
    tx = skip_unstable(optax.scale(-1.0), max_consecutive=2)
    taken, states = run(tx, [1, 1, 0, 1, 1, 1, 1, 1, 1, 0])
    assert taken == [False, False, True, False, False, True, False, False, True, True]
    assert [int(s.skipped_in_row) for s in states] == [1, 2, 0, 1, 2, 0, 1, 2, 0, 0]
    assert int(states[-1].skipped_total) == 6
    check_stable(states[-1])
    # Optax goes on counting what it takes, as skipped in a row, and lets all through.
    theirs = optax.apply_if_finite(optax.scale(-1.0), 2)
    state, counts = theirs.init(jnp.ones(())), []
    for _ in range(6):
        _, state = theirs.update(jnp.array(jnp.nan), state)
        counts.append(int(state.notfinite_count))
    assert counts == [1, 2, 3, 4, 5, 6]


def test_keeps_skipping_until_somebody_looks():
    tx = skip_unstable(optax.scale(-1.0), max_consecutive=3, then="keep_skipping")
    taken, states = run(tx, [1, 1, 0, 1, 1, 1, 1, 0])
    assert taken == [False, False, True, False, False, False, False, True]
    assert [bool(s.exhausted) for s in states] == [False] * 5 + [True] * 3
    check_stable({"opt": (states[4], optax.EmptyState())})
    with pytest.raises(FloatingPointError) as caught:
        check_stable({"opt": (states[6], optax.EmptyState())})
    message = "unstable training: skipped 6 steps, too many in a row; last norm nan"
    assert str(caught.value) == message
    with pytest.raises(ValueError, match="`state` must have one state of skip_unstable, got 0"):
        check_stable(optax.EmptyState())
    both = jax.tree.map(lambda *x: jnp.stack(x), states[0], states[6])
    with pytest.raises(FloatingPointError, match="skipped 6 steps"):
        check_stable(both)


def test_counters_stay_at_their_largest_number():
    tx, largest = skip_unstable(optax.scale(-1.0)), jnp.iinfo(jnp.int32).max
    full = tx.init(jnp.ones(()))._replace(
        skipped_in_row=jnp.int32(largest), skipped_total=jnp.int32(largest)
    )
    _, state = tx.update(jnp.array(jnp.inf), full)
    assert (int(state.skipped_in_row), int(state.skipped_total)) == (largest, largest)


@pytest.mark.exhaustive
@pytest.mark.parametrize("threshold", [None, 6.0])
def test_keeps_the_contract_of_a_transformation(threshold, x64):
    params = {"a": parameters(jnp.bfloat16), "none": None, "z": jnp.zeros((0, 2), jnp.complex64)}
    tx = skip_unstable(adam_jax.adam(1e-2), threshold=threshold)
    state = jax.jit(tx.init)(params)
    abstract = jax.eval_shape(tx.init, params)
    assert jax.tree.map(lambda x: x.dtype, abstract) == jax.tree.map(lambda x: x.dtype, state)
    step = jax.jit(lambda p, s: tx.update(p, s, p, value=jnp.float64(2)), donate_argnums=1)
    updates, new = step(params, state)
    assert_same_kind(new, tx.init(params))
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, params)
    step(params, tx.update(params, new, params, grad_norm=jnp.float32(1))[1])
    wide = tx.init({"a": jnp.ones(2, jnp.float64)})
    assert wide.norm.dtype == jnp.float64
    assert (wide.norms is None) == (threshold is None)


def test_finite_input_passes_jaxs_strictest_settings():
    with configured(STRICT):
        tx, params = skip_unstable(adam_jax.adam(1e-2), threshold=6.0), parameters()
        state = tx.init(params)
        for gradient in (params, jax.tree.map(jnp.zeros_like, params)):
            _, state = tx.update(gradient, state, params, value=1.0)  # eager
            _, state = jax.jit(tx.update)(gradient, state, params, value=3e38, grad_norm=3e38)
        # What is not finite comes from elsewhere: it is no NaN that this makes.
        _, state = jax.jit(tx.update)(params, state, params, grad_norm=jnp.inf)
        assert int(state.skipped_total) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0}, "`threshold` must be None or a number > 0, got 0"),
        ({"window": 0}, "`window` must be a positive integer, got 0"),
        ({"max_consecutive": 0}, "`max_consecutive` must be None or a positive integer, got 0"),
        ({"then": "stop"}, "`then` must be 'let_through' or 'keep_skipping', got 'stop'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(") + "$"):
        skip_unstable(optax.sgd(0.1), **arguments)
    with pytest.raises(TypeError, match="`inner` must be an Optax transformation, got 1"):
        skip_unstable(1)


@pytest.mark.costly
@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA fused fewer sums then")
@pytest.mark.parametrize("moments", [None, jnp.bfloat16, EIGHT_BIT], ids=str)
def test_holds_no_array_of_a_parameters_size(moments):
    params = [jax.ShapeDtypeStruct((2**22,), jnp.float32)] * 2
    inner = adam_jax.adam(1e-2, mu_dtype=moments, nu_dtype=moments)

    def temporaries(tx):
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        options = adam_jax.compiler_options()
        step = jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
        lowered = step.lower(params, jax.eval_shape(tx.init, params), params)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(skip_unstable(inner, threshold=6.0)) < temporaries(inner) + 2**20
    assert temporaries(optax.apply_if_finite(inner, 5)) > temporaries(inner) + 2**24  # the twin
