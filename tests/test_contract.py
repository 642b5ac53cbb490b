"""What holds for every member in every storage format: the package's invariants, in their order.

Members and formats come from `family`; nothing here knows one by name. What only traces is a test a
pair. What compiles is a test a member: its tree holds one subtree for each format, so that all are
one program, and a failure names the leaf, whose path begins with the format.
"""

import functools
import itertools
from typing import NamedTuple

import chex
import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_kind, configured
from family import FORMATS, MEMBERS
from jax.extend import core as jex_core

import adam_jax

FIRST = next(iter(FORMATS))
FIRST_MEMBER = next(iter(MEMBERS))
LOW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}
MATRIX = (7, 61)  # its rows are no multiple of a block, nor of a byte of two codes


def turn(member):
    """Of the formats that are not the first, this member's: they take turns."""
    stored = [f for f, storage in FORMATS.items() if not (f == FIRST or storage.variant)]
    return stored[list(MEMBERS).index(member) % len(stored)]


def formats(member, *, variants):
    """The formats that a member is tested in; two for what is another row but for its decay.

    With variants, also those of a member in the first format, of a format with the first member.
    """
    if MEMBERS[member].by_decay:
        return [FIRST, turn(member)]
    return [
        name
        for name, storage in FORMATS.items()
        if not (MEMBERS[member].variant or storage.variant)
        or (variants and (member == FIRST_MEMBER or name == FIRST))
    ]


def cases(members, *, variants):
    pairs = [(m, f) for m in members for f in formats(m, variants=variants)]
    return pytest.mark.parametrize(("member", "storage"), pairs, ids=[f"{m}-{f}" for m, f in pairs])


DIRECTIONS = [m for m, row in MEMBERS.items() if not row.by_decay]
every = cases(DIRECTIONS, variants=False)
every_variant_too = cases(DIRECTIONS, variants=True)
every_optimizer = cases(MEMBERS, variants=False)
every_member = pytest.mark.parametrize("member", [m for m in MEMBERS if not MEMBERS[m].variant])
every_member_variant_too = pytest.mark.parametrize("member", DIRECTIONS)


def every_optimizer_with(name, values, others):
    """The test over each member; with the first one over all values, else over the ``others``."""
    cases = [
        pytest.param(m, value, id=f"{label}-{m}")
        for m, row in MEMBERS.items()
        if row.by_decay or not row.variant
        for label, value in values.items()
        if m == FIRST_MEMBER or label in others
    ]
    return pytest.mark.parametrize(("member", name), cases)


def of_format(keyword):
    """The storage of a leaf whose path begins with the name of a format."""
    return lambda path, leaf: FORMATS[path[0].key].arguments.get(keyword)


ALL = {"mu_dtype": of_format("mu_dtype"), "nu_dtype": of_format("nu_dtype")}


def build(make, *args, storage, **settings):
    """The transformation in one format, or in that of each leaf's path."""
    return make(*args, **(FORMATS[storage].arguments if storage else ALL), **settings)


def direction(member, storage=None, **more):
    row = MEMBERS[member]
    return build(row.direction, storage=storage, **row.settings, **more)


def optimizer(member, storage=None, learning_rate=0.01, **more):
    row = MEMBERS[member]
    return build(row.optimizer, learning_rate, storage=storage, **row.settings, **more)


def array(shape=MATRIX, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * rng.standard_normal(shape)
    return jnp.asarray(x, dtype)


def tree(dtype=jnp.float32, seed=0):
    """Parameters of every kind of shape that people have, and the holes that trees have."""
    make = functools.partial(array, dtype=dtype)
    return {
        "dense": {"w": make(seed=seed)},
        "scalar": make((), seed=seed + 100),
        "empty": make((0, 3)),
        "frozen": None,
        "list": [make(seed=seed + 200), ()],
    }


def forest(member, leaf=None):
    """The tree (or another leaf) once for each format of a member.

    The smallest shapes are run in blocks of codes with the first member; with others only traced.
    So are, without ``--exhaustive``, all but the first format and one more: members take turns.
    """
    leaf = tree() if leaf is None else leaf
    found = dict.fromkeys(formats(member, variants=True), leaf)
    if not (member == FIRST_MEMBER or MEMBERS[member].variant or family.exhaustive):
        found = dict.fromkeys((FIRST, turn(member)), leaf)
    if isinstance(leaf, dict) and "scalar" in leaf and member != FIRST_MEMBER:
        larger = {**leaf, "scalar": None, "empty": None}
        found.update({f: larger for f in found if len(FORMATS[f].dtypes) > 1})
    return found


def own(tree):
    """The same arrays, each in memory of its own."""
    return jax.tree.map(jnp.copy, tree)


def decoded(state):
    """A state with its moments in float32 or wider."""

    def at_rest(x):
        return isinstance(x, adam_jax.storage.Blocks)

    def wide(x):
        x = x.decode() if at_rest(x) else x
        return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x

    return jax.tree.map(wide, state, is_leaf=at_rest)


def run(tx, gradients, params, state=None):
    state = tx.init(params) if state is None else state
    for g in gradients:
        updates, state = tx.update(g, state, params)
    return updates, state


def steps(count=3, dtype=jnp.float32):
    return [tree(dtype, seed) for seed in range(1, count + 1)]


@functools.cache
def eager(member):
    """The direction and the state after each of three steps, in every format."""
    tx = direction(member)
    params, history = forest(member), []
    state = tx.init(params)
    for g in steps():
        updates, state = tx.update(forest(member, g), state, params)
        history.append((updates, state))
    return history


@functools.cache
def exact(member):
    """The same, but each step in float32, from what the formats stored of those before."""
    plain, history = direction(member, FIRST), []
    before = direction(member).init(forest(member))
    for g, (_, after) in zip(steps(), eager(member), strict=True):
        history.append(plain.update(forest(member, g), decoded(before)))
        before = after
    return history


@functools.cache
def jitted(member):
    """A jitted step in every format that takes the place of its arguments, and its traces."""
    tx, traces = direction(member), []

    def step(params, state, g):
        traces.append(g)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state, updates

    return jax.jit(step, donate_argnums=(0, 1)), traces


@functools.cache
def jitted_init(member):
    params = own(forest(member))
    return params, jax.jit(direction(member).init)(params)


def leaves(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def floats(tree):
    """The floating leaves by their paths, in float64."""
    return {
        path: np.asarray(x).astype(complex if jnp.iscomplexobj(x) else float)
        for path, x in leaves(tree).items()
        if jnp.issubdtype(x.dtype, jnp.inexact)
    }


def differing(actual, expected):
    """The leaves of two trees of one structure that have not the same shape, dtype and bits."""
    chex.assert_trees_all_equal_structs(actual, expected)
    expected = leaves(expected)

    def bits(x):
        return x.shape, x.dtype, np.asarray(x).tobytes()

    return [path for path, x in leaves(actual).items() if bits(x) != bits(expected[path])]


def error(actual, expected):
    """The largest error of an array, relative to the largest entry of what is expected."""
    largest = np.max(np.abs(expected), initial=0)
    wrong = np.max(np.abs(np.asarray(actual).astype(expected.dtype) - expected), initial=0)
    return wrong / largest if largest else wrong


# 1. Arithmetic is float32, whatever the dtypes of parameters, gradients and state.


@pytest.mark.costly
@every_optimizer_with("dtype", LOW, others=["bfloat16"])
def test_low_precision_gradients_give_the_float32_step_rounded_once(member, dtype):
    tx = optimizer(member)
    params, *gradients = (forest(member, g) for g in (tree(dtype), *steps(2, dtype)))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, gradients))
    state = tx.init(wide[0])
    updates, new = run(tx, gradients, params, state)
    expected, expected_new = run(tx, wide[1], wide[0], state)
    assert not differing(updates, jax.tree.map(lambda x: x.astype(dtype), expected))
    assert not differing(new, expected_new)


def float_dtypes_of_arithmetic(jaxpr):
    """The dtypes of all floating results, but for those of casts and of pure data movement."""
    moved = {"convert_element_type", "bitcast_convert_type", "broadcast_in_dim", "reshape"}
    for eqn in jaxpr.eqns:
        inner = [p for p in eqn.params.values() if isinstance(p, jex_core.ClosedJaxpr)]
        for closed in inner:
            yield from float_dtypes_of_arithmetic(closed.jaxpr)
        if not inner and eqn.primitive.name not in moved:
            yield from (
                (eqn.primitive.name, v.aval.dtype)
                for v in eqn.outvars
                if jnp.issubdtype(v.aval.dtype, jnp.floating)
            )


@pytest.mark.costly
@every_optimizer
def test_every_operation_is_in_float32_also_with_64_bits_enabled(member, storage, x64):
    tx = optimizer(member, storage)
    params = {"w": array(), "low": array(dtype=jnp.bfloat16), "scalar": array(())}
    traced = jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params)
    found = set(float_dtypes_of_arithmetic(traced.jaxpr))
    assert found
    assert {dtype for _, dtype in found} == {jnp.dtype(jnp.float32)}, found


@pytest.mark.costly
@every_member_variant_too
def test_float64_parameters_are_updated_in_float64(member, x64):
    row, tx, plain = MEMBERS[member], direction(member), direction(member, FIRST)
    gradients = [array(dtype=jnp.float64, seed=seed) for seed in (1, 2)]
    expected, _ = row.oracle(np.stack(gradients), **row.settings)
    with jax.disable_jit():  # each operation by itself, compiled but once for all members
        state = tx.init(forest(member, gradients[0]))
        for g, truth in zip(gradients, expected, strict=True):
            # Each format from what it has stored, rounded in its own way.
            same, _ = plain.update(forest(member, g), decoded(state))
            updates, state = tx.update(forest(member, g), state)
            assert {k: u.dtype for k, u in updates.items() if u.dtype != jnp.float64} == {}
            assert {k: u for k, u in updates.items() if error(u, np.asarray(same[k])) > 1e-12} == {}
            assert error(updates[FIRST], truth) <= 1e-12


# 2. `update` returns state exactly of `init`'s kind: it scans, traces once, and donates.


@pytest.mark.costly
@every_optimizer
def test_state_keeps_its_kind_whatever_the_dtypes(member, storage):
    tx = optimizer(member, storage)
    dtypes = list(itertools.product([jnp.float32, jnp.bfloat16, jnp.float16], repeat=2))
    params = {str(i): tree(p) for i, (p, _) in enumerate(dtypes)}
    g = {str(i): tree(d, 1) for i, (_, d) in enumerate(dtypes)}

    def scan(state):
        return jax.lax.scan(lambda s, _: (tx.update(g, s, params)[1], None), state, length=3)[0]

    # Abstractly, which is enough to know the kinds, and compiles nothing.
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, g, state, params)
    assert_same_kind(new, state)
    chex.assert_trees_all_equal_dtypes(updates, g)
    assert_same_kind(jax.eval_shape(scan, state), state)
    assert_same_kind(jax.eval_shape(tx.init, jax.eval_shape(lambda: g)), state)


@pytest.mark.costly
@every_member
def test_a_jitted_step_is_traced_once_and_donates_its_state(member):
    step, traces = jitted(member)
    params = own(forest(member))
    state = direction(member).init(params)
    for g in steps():
        old = {k: x for k, x in leaves((params, state)).items() if x.size}
        params, state, _ = step(params, state, forest(member, g))
        assert [path for path, x in old.items() if not x.is_deleted()] == []
    assert len(traces) == 1
    # With learning rate and decay, too: JAX warns of what it is given in vain.
    tx = optimizer(member)
    abstract = jax.eval_shape(lambda: (params := forest(member), tx.init(params)))

    def whole(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    jax.jit(whole, donate_argnums=(0, 1)).lower(*abstract)
    assert_same_kind(jax.eval_shape(whole, *abstract), abstract)


# 3. `init` works abstractly and never aliases parameters.


@pytest.mark.costly
@every_member
def test_init_works_abstractly(member):
    tx, params = optimizer(member), forest(member)
    abstract = jax.eval_shape(tx.init, jax.eval_shape(lambda: params))
    concrete = tx.init(params)
    assert_same_kind(abstract, jax.eval_shape(lambda: concrete))


@pytest.mark.costly
@every_member
def test_no_two_arrays_of_parameters_and_state_share_memory(member):
    params = own(forest(member))
    for arrays in ((params, direction(member).init(params)), jitted_init(member)):
        seen = {}
        for path, x in leaves(arrays).items():
            if x.size:
                seen.setdefault(x.unsafe_buffer_pointer(), []).append(path)
        assert [paths for paths in seen.values() if len(paths) > 1] == []


@pytest.mark.costly
@every
def test_stored_moments_have_the_formats_dtype(member, storage):
    state = jax.eval_shape(direction(member, storage).init, {"w": jnp.ones((3, 4))})
    stored = {x.dtype for x in jax.tree.leaves(state) if x.dtype != jnp.int32}
    assert stored == set(map(jnp.dtype, FORMATS[storage].dtypes))


# 4. Updates have the gradients' dtypes and structure.


@pytest.mark.costly
@every_optimizer
def test_updates_are_like_the_gradients(member, storage):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": (jnp.ones((2, 2)), None)}
    g = {"a": jnp.ones(3, jnp.float32), "b": (jnp.ones((2, 2), jnp.float16), None)}
    for tx in (direction(member, storage), optimizer(member, storage)):
        updates, _ = jax.eval_shape(tx.update, g, jax.eval_shape(tx.init, params), params)
        chex.assert_trees_all_equal_structs(updates, g)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, g)


# 5. Finite gradients give finite updates at every magnitude; zero gradients give zero.


def magnitudes(dtype):
    info = jnp.finfo(dtype)
    smallest, largest = float(info.smallest_subnormal), float(info.max)
    powers = np.geomspace(max(smallest, 1e-300), largest / 2, 209)
    sizes = np.concatenate([[smallest, float(info.tiny), largest, largest], powers])
    return np.concatenate([[0], sizes, -sizes]).reshape(MATRIX)


def not_finite(*trees):
    return [path for path, x in floats(trees).items() if not np.all(np.isfinite(x))]


@pytest.mark.costly
@every_member_variant_too
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=["float32", "bfloat16", "float16"]
)
def test_every_finite_gradient_gives_finite_updates_and_state(member, dtype):
    g = magnitudes(dtype)
    rng = np.random.default_rng(0)
    orders = [g, -g, g, 0 * g, *(rng.permuted(g) for _ in range(12)), g, -g]
    # The optimizer widens what it is given, so that it needs no other program for each dtype.
    for tx in (direction(member),) if dtype == jnp.float32 else (optimizer(member, None, 1.0),):
        state = tx.init(forest(member, {"w": jnp.zeros(MATRIX)}))
        for each in orders:
            x = forest(member, {"w": jnp.asarray(each, dtype)})
            assert not_finite(x) == []
            updates, state = tx.update(x, state, x)
            assert not_finite(updates, state) == []


@pytest.mark.costly
@every_member_variant_too
def test_zero_gradients_from_a_fresh_state_give_zero(member):
    tx, zero = direction(member), jax.tree.map(jnp.zeros_like, forest(member))
    most = 1e-2 if MEMBERS[member].drifts else 0
    state = tx.init(zero)
    for _ in range(2):
        updates, state = tx.update(zero, state)
        chex.assert_trees_all_equal_structs(updates, zero)
        assert [k for k, u in floats(updates).items() if np.any(np.abs(u) > most)] == []
        assert not_finite(updates) == []


@pytest.mark.costly
@every_member_variant_too
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_never_hidden(member, bad):
    tx = direction(member)
    g = forest(member, {"w": array().at[0, 1].set(bad)})
    updates, _ = tx.update(g, tx.init(forest(member, {"w": array()})))
    bad_ones = {path: ~np.isfinite(u) for path, u in floats(updates).items()}
    assert [path for path, where in bad_ones.items() if not where[0, 1]] == []
    if not MEMBERS[member].reduces:
        assert [path for path, where in bad_ones.items() if where.sum() != 1] == []


@pytest.mark.costly
@every_optimizer_with(
    "dtype",
    {"float16": jnp.float16, "e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2},
    others=["float16"],
)
def test_updates_too_large_for_a_small_dtype_are_held(member, dtype):
    tx = optimizer(member, None, 1e8)
    g = forest(member, {"w": jnp.ones(MATRIX, dtype)})
    state = tx.init(forest(member, {"w": jnp.ones(MATRIX)}))
    updates, _ = run(tx, [g, g], g, state)
    largest = float(jnp.finfo(dtype).max)
    assert [path for path, u in floats(updates).items() if not np.all(u == -largest)] == []


# 6. Same inputs and seed give the same bits, eager, jitted and vmapped.


@pytest.mark.costly
@every_member_variant_too
def test_eager_and_jitted_steps_agree_bit_for_bit(member):
    params, state = jitted_init(member)
    tx = direction(member)
    again = fresh = tx.init(forest(member))
    assert differing(state, fresh) == []
    step, _ = jitted(member)
    params, state = own((params, state))
    for g, (updates, new) in zip(steps(), eager(member), strict=True):
        repeated, again = tx.update(forest(member, g), again, params)
        assert differing((repeated, again), (updates, new)) == []
        params, state, found = step(params, state, forest(member, g))
        # A sum may have another order in another program: with the oldest JAX it has.
        if not MEMBERS[member].reduces or jax.__version_info__ >= (0, 6):
            assert differing((found, state), (updates, new)) == []


@pytest.mark.costly
@every_member_variant_too
def test_vmapped_steps_agree_with_single_ones(member):
    tx = direction(member)
    params, g = (
        {f: {k: x[k] for k in ("dense", "scalar")} for f, x in forest(member, t).items()}
        for t in (tree(), steps()[0])
    )
    fresh = tx.init(params)
    _, state = tx.update(g, fresh, params)
    expected = tx.update(g, state, params)

    def two(x):
        return jax.tree.map(lambda x: jnp.stack([x, 2 * x]), x)

    def both(params, g, state):
        return jax.vmap(tx.init)(params), jax.vmap(tx.update)(g, state)

    # The same state twice, for it also has codes and counts.
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    found = jax.jit(both)(two(params), two(g), twice)
    found_fresh, (updates, new) = jax.tree.map(lambda x: x[0], found)
    assert differing(found_fresh, fresh) == []
    if not MEMBERS[member].reduces:
        assert differing((updates, new), expected) == []
        return
    # Another order of summation: and so, by chance, another code.
    assert_same_kind(new, expected[1])
    truth = floats(expected[0])
    assert {k: u for k, u in floats(updates).items() if error(u, truth[k]) > 1e-6} == {}


# 7. Holes, empty trees, empty and zero-dimensional arrays pass through; complex arrays work.


@every_optimizer
@pytest.mark.parametrize("empty", [{}, [], {"a": None}, optax.MaskedNode()])
def test_empty_trees_pass_through(member, storage, empty):
    tx = optimizer(member, storage)
    updates, state = tx.update(empty, tx.init(empty), empty)
    assert updates == empty
    assert_same_kind(state, tx.init(empty))


@pytest.mark.costly
@every_variant_too
def test_complex_arrays_have_a_real_second_moment(member, storage):
    row, tx = MEMBERS[member], direction(member, storage)
    gradients = [{"w": array(dtype=jnp.complex64, seed=seed)} for seed in (1, 2, 3)]
    if not FORMATS[storage].complex:
        with pytest.raises(TypeError, match=r"params\['w'\] is complex64"):
            tx.init(gradients[0])
        return
    updates, state = run(tx, gradients, gradients[0])
    expected, moments = row.oracle(np.stack([g["w"] for g in gradients]), **row.settings)
    assert error(updates["w"], expected[-1]) < 2e-6
    for name, moment in moments.items():
        stored = getattr(state, name)["w"]
        assert jnp.iscomplexobj(stored) == np.iscomplexobj(moment), name
        assert error(stored, moment) < 2e-6, name


# 8. Strict dtype promotion, rank promotion, 64 bits, NaN checks, leak checks.


STRICT = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
X64 = {"jax_enable_x64": True}
NANS = {"jax_debug_nans": True}


def named(settings):
    return pytest.mark.parametrize("settings", settings, ids=["+".join(s) for s in settings])


@pytest.mark.costly
@every_optimizer
@named([STRICT, STRICT | X64, X64])
def test_traces_under_jaxs_strictest_settings(member, storage, settings):
    params = {"w": array(), "low": array((), jnp.bfloat16)}
    if FORMATS[storage].complex:
        params["complex"] = array(dtype=jnp.complex64)

    def abstract(**rate):
        return jax.eval_shape(lambda p: run(optimizer(member, storage, **rate), [p], p), params)

    expected = abstract()
    with configured(settings):
        assert_same_kind(abstract(), expected)
        traced = abstract(learning_rate=jnp.float32(0.01))
        assert_same_kind(traced[1], expected[1])


@pytest.mark.costly
@every_optimizer_with(
    "settings",
    {"strict": {"jax_numpy_dtype_promotion": "strict"}, "strict+x64": STRICT | X64, "nans": NANS},
    others=["strict+x64", "nans"],
)
def test_gives_the_same_bits_under_jaxs_strictest_settings(member, settings):
    params, g = (forest(member, {"w": array(seed=seed)}) for seed in (0, 1))
    start = optimizer(member).init(params)
    expected = run(optimizer(member), [g], params, start)
    with configured(settings):
        assert differing(run(optimizer(member), [g], params, start), expected) == []
        zero = jax.tree.map(jnp.zeros_like, g)
        traced = run(optimizer(member, None, jnp.float32(0.01)), [zero], params, start)
        assert_same_kind(traced[1], expected[1])


@pytest.mark.costly
@every
def test_no_tracer_leaks(member, storage):
    # Of a shape of its own, for what was traced before is not looked at again.
    params = {"w": jnp.ones(13, jnp.bfloat16)}
    with configured({"jax_check_tracer_leaks": True}):
        updates, _ = jax.jit(
            lambda rate, g: run(optimizer(member, storage, rate), [g, g], params)
        ).eval_shape(0.01, params)
    assert updates["w"].dtype == jnp.bfloat16


# 9. Static values are validated where they enter; mismatches name the leaf.


@pytest.mark.costly
@every_member
def test_bad_trees_are_refused_by_the_leafs_path(member):
    tx = optimizer(member, "default")
    params = {"dense": {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}}
    state = tx.init(params)

    def refused(error, message, w=params["dense"]["w"], state=state, **more):
        with pytest.raises(error) as caught:
            tx.update({"dense": {"w": w, "b": jnp.ones(3), **more}}, state, None)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    name = "gradient for params['dense']['w']"
    refused(
        ValueError, f"{name} has shape (3, 4); the state was built for (4, 3)", jnp.ones((3, 4))
    )
    refused(TypeError, f"{name} must be floating or complex, got int32", jnp.ones((4, 3), int))
    refused(TypeError, f"{name} must be an array, got 'x'", "x")
    refused(TypeError, f"{name} is complex64[4, 3]", jnp.ones((4, 3), jnp.complex64))
    refused(ValueError, "no gradient for params['dense']['w'], which is in the state", None)
    refused(ValueError, "gradient for params['dense']['c']: no such leaf in the state", c=1.0)
    low = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )
    refused(ValueError, "['dense']['b'] must be float32 or wider, got bfloat16[", state=low)
    with pytest.raises(ValueError, match=r"params\['dense'\]\['w'\] has shape"):
        tx.update(params, state, {"dense": {"w": jnp.ones(3), "b": jnp.ones(3)}})


@every_member
@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (3, "params['n'] must be floating or complex, got int32"),
        (np.arange(3), "params['n'] must be floating or complex, got int"),
        (True, "params['n'] must be floating or complex, got bool"),
        ("x", "params['n'] must be an array, got 'x'"),
        (jax.nn.relu, "params['n'] must be an array, got "),
    ],
)
def test_parameters_that_cannot_be_updated_are_refused_by_name(member, leaf, message):
    with pytest.raises(TypeError) as caught:
        optimizer(member, "default").init({"w": jnp.ones(2), "n": leaf})
    assert str(caught.value).startswith(message)


ARRAY = jnp.ones((20, 20))


class Pair(NamedTuple):
    w: object


class Other(NamedTuple):
    w1: object


@every_member
@pytest.mark.parametrize(
    ("built", "given", "message"),
    [
        ({"a": ARRAY}, ARRAY, "other containers than the state"),
        ({"a": {"b": ARRAY}}, {"a": ARRAY}, "other containers than the state"),
        ([ARRAY], (ARRAY,), "other containers than the state"),
        (Other(ARRAY), Pair(ARRAY), "gradient for params.w: no such leaf in the state"),
        ({"a": ARRAY}, {"a": np.array([object()] * 9)}, "must be an array, got object[9]"),
        ({"a": ARRAY}, {"a": np.ones(9, np.longdouble)}, "must be an array, got float"),
    ],
    ids=["bare", "deeper", "list", "names", "objects", "longdouble"],
)
def test_other_trees_are_refused_in_one_line(member, built, given, message):
    tx = optimizer(member, "default")
    with pytest.raises((TypeError, ValueError)) as caught:
        tx.update(given, tx.init(built))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@every_member
def test_a_state_of_something_else_is_refused(member):
    g = {"w": ARRAY}
    with pytest.raises(TypeError, match=r"^state must be \w+, got tuple$"):
        direction(member, "default").update(g, optimizer(member, "default").init(g))


BAD_ARGUMENTS = [
    ({"b1": 1.5}, ValueError, "`b1` must be in [0, 1), got 1.5"),
    ({"b2": 1.0}, ValueError, "`b2` must be in [0, 1), got 1.0"),
    ({"b2": np.float32(-0.1)}, ValueError, "`b2` must be in [0, 1), got -0.1"),
    ({"b1": np.ones((3, 3))}, TypeError, "`b1` must be in [0, 1), got float64[3, 3]"),
    ({"b1": jnp.ones(3)}, TypeError, "`b1` must be a real scalar, got float32[3]"),
    ({"b1": jnp.complex64(0.5)}, TypeError, "`b1` must be a real scalar, got complex64[]"),
    ({"b2": jnp.bfloat16(0.999)}, TypeError, "`b2` must be float32 or wider, got bfloat16"),
    ({"eps": jnp.float16(1e-8)}, TypeError, "`eps` must be float32 or wider, got float16"),
    ({"eps": -1e-8}, ValueError, "`eps` must be a finite number >= 0, got -1e-08"),
    ({"eps_root": np.nan}, ValueError, "`eps_root` must be a finite number >= 0, got nan"),
    ({"eps": "1e-8"}, TypeError, "`eps` must be a finite number >= 0, got '1e-8'"),
    ({"nesterov": 1}, TypeError, "`nesterov` must be True or False, got 1"),
    ({"mu_dtype": np.float32(0.5)}, TypeError, "`mu_dtype` must be float32, float64, bfloat16 or"),
    (
        {"mu_dtype": jnp.ones(3)},
        TypeError,
        "storage format such as storage.eight_bit(), got float32[3]",
    ),
    ({"mu_dtype": jnp.int8}, ValueError, "`mu_dtype` must be float32, float64, bfloat16 or"),
    ({"nu_dtype": jnp.float16}, ValueError, "`nu_dtype` must be float32, float64, bfloat16 or"),
    ({"nu_dtype": jnp.float64}, ValueError, "float64 needs jax.config.update("),
    ({"nu_dtype": "tiny"}, TypeError, "`nu_dtype` must be float32, float64, bfloat16 or"),
    ({"seed": -1}, ValueError, "`seed` must be an integer in [0, 2**32), got -1"),
    ({"seed": 0.5}, TypeError, "`seed` must be an integer in [0, 2**32), got 0.5"),
    ({"learning_rate": -1}, ValueError, "`learning_rate` must be a finite number >= 0 or a sch"),
    ({"learning_rate": 10**400}, ValueError, "`learning_rate` must be a finite number >= 0"),
    ({"learning_rate": None}, TypeError, "`learning_rate` must be a finite number >= 0 or a sch"),
    ({"weight_decay": -1}, ValueError, "`weight_decay` must be a finite number >= 0 or a sch"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS, ids=str)
def test_bad_arguments_are_refused_where_they_enter(arguments, error, message):
    with pytest.raises(error) as caught:
        adam_jax.adamw(**{"learning_rate": 0.1, **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# 10. No ignored argument.


@functools.cache
def trajectory(length, size):
    """Gradients of entries that differ in size, a few so small that every eps matters."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.standard_normal(size)) * np.where(np.arange(size) % 4, 1, 1e-4)
    return np.float32(rng.standard_normal((length, size)) * sizes)


def follow(tx, gradients):
    """Directions and final state of the package, on stacked float32 gradients."""

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    gradients = jnp.asarray(gradients)
    state, directions = jax.lax.scan(step, tx.init(gradients[0]), gradients)
    return directions, state


@pytest.mark.costly
@every_member_variant_too
def test_each_scalar_matters_and_may_be_traced(member):
    row, gradients = MEMBERS[member], trajectory(20, 30)

    @jax.jit
    def final(scalars):
        return follow(row.direction(**{**row.settings, **scalars}), gradients)[0]

    def agrees(scalars):
        found = final(scalars)
        # A traced number has a float32's digits, and the truth is that of these.
        rounded = {k: float(np.float32(v)) for k, v in scalars.items()}
        assert error(found, row.oracle(gradients, **{**row.settings, **rounded})[0]) < 2e-6
        return found

    static = {name: row.settings[name] for name in row.tunable}
    as_given = agrees(static)
    for name, value in static.items():
        assert not np.array_equal(agrees({**static, name: 0.9 * value + 1e-3}), as_given), name


@pytest.mark.costly
@every_member
def test_extra_arguments_are_accepted(member):
    tx, params = optimizer(member), forest(member)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    state = tx.init(params)
    plain = tx.update(params, state, params)
    extra = tx.update(params, state, params, value=1.0, grad_norm=2.0)
    assert differing(plain, extra) == []


def by_chance(storage):
    return adam_jax.storage.format_of("", FORMATS[storage].arguments.get("mu_dtype")).stochastic


@pytest.mark.costly
@every_member_variant_too
def test_the_seed_matters_where_rounding_is_by_chance(member):
    params, gradients = forest(member), [forest(member, g) for g in steps(2)]
    one, again, two = (
        run(optimizer(member, seed=seed), gradients, params)[1] for seed in (1, 1, 2)
    )
    assert differing(one, again) == []
    other = differing(one, two)
    for name in params:
        assert any(f"['{name}']" in path for path in other) == by_chance(name), name


@pytest.mark.costly
@every_member
def test_equal_leaves_are_rounded_apart(member):
    g = forest(member, {"a": array(), "b": array()})
    _, state = direction(member).update(g, direction(member).init(g))
    a, b = (
        {k.replace(f"['{n}']", "", 1): x for k, x in leaves(state).items() if f"['{n}']" in k}
        for n in ("a", "b")
    )
    apart = [path for path, x in a.items() if not np.array_equal(x, b[path])]
    for name in g:
        assert any(f"['{name}']" in path for path in apart) == by_chance(name), name


# The formula, against the paper.


@functools.cache
def followed(member):
    directions, state = follow(direction(member, FIRST), trajectory(60, 100))
    return directions, state


def disagreement(member, settings):
    """The largest error against the oracle, relative to each array's largest entry."""
    directions, state = followed(member)
    expected, moments = MEMBERS[member].oracle(trajectory(60, 100), **settings)
    pairs = [(directions, expected), *((getattr(state, k), v) for k, v in moments.items())]
    return max(error(a, b) for a, b in pairs)


@every_member_variant_too
def test_agrees_with_the_paper(member):
    assert disagreement(member, MEMBERS[member].settings) < 1e-6


@every_member_variant_too
def test_the_oracle_can_fail(member):
    settings = MEMBERS[member].settings
    for name in MEMBERS[member].tunable:
        broken = {**settings, name: 0.99 * settings[name] + 1e-4}
        assert disagreement(member, broken) > 1e-6, name


def test_decays_as_the_papers_say():
    """Each optimizer to float64's precision; and none whose decay is elsewhere in the step."""
    rows = {m: row for m, row in MEMBERS.items() if row.decay is not None}
    elsewhere = adam_jax.decay.by_learning_rate(0.1, after=True)
    gradients, params = array((10, 4, 3), seed=1), array((4, 3))

    def path(row, weight_decay):
        tx = row.optimizer(0.01, weight_decay=weight_decay, **row.settings)

        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = jnp.asarray(params, float)
        return jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(gradients, float))[1]

    with configured({"jax_enable_x64": True}):
        found, twins = jax.jit(
            lambda: [{m: path(row, x) for m, row in rows.items()} for x in (0.1, elsewhere)]
        )()
    settings = {"learning_rate": 0.01, "weight_decay": 0.1}
    expected = {
        m: row.path(gradients, params, **settings, **row.settings) for m, row in rows.items()
    }
    assert {m: x for m in rows if (x := error(found[m], expected[m])) > 1e-12} == {}
    assert {m: x for m in rows if (x := error(twins[m], expected[m])) < 1e-7} == {}


def wrong(actual, expected, most):
    """The floating leaves whose error is larger than what ``most`` says of their path."""
    actual, expected = floats(actual), floats(expected)
    errors = {path: error(x, expected[path]) for path, x in actual.items()}
    return {path: x for path, x in errors.items() if not x <= most(path)}


@pytest.mark.costly
@every_member_variant_too
def test_the_step_itself_uses_unrounded_moments(member):
    # Not to the bit: what is decoded by itself is not fused with the step.
    for (updates, _), (expected, _) in zip(eager(member), exact(member), strict=True):
        assert wrong(updates, expected, lambda _: 1e-5) == {}


@pytest.mark.costly
@every_member_variant_too
def test_the_stored_moments_are_right_to_the_formats_precision(member):
    def precision(path):
        # By chance to the farther neighbour, too.
        return 1.5 * next(FORMATS[f].precision for f in forest(member) if f"['{f}']" in path)

    for (_, state), (_, expected) in zip(eager(member), exact(member), strict=True):
        assert wrong(decoded(state), expected, precision) == {}
