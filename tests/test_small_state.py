"""Optimizers whose moments rest in a few bits: through the public constructors, on trees.

What one array does is in `test_blockwise`; what holds of every format is in `test_contract`.
"""

import io
import itertools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from family import mostly

import adam_jax
from adam_jax import storage

KINDS: dict[str, Any] = {
    "eight_bit": storage.eight_bit,
    "four_bit": storage.four_bit,
    "float8": storage.float8,
}
every_kind = pytest.mark.parametrize("kind", mostly(("four_bit",), KINDS))


def both(form: Any, **more: Any) -> dict[str, Any]:
    return {"mu_dtype": form, "nu_dtype": form, **more}


def decoded(stored: Any) -> Any:
    """A moment as a float32 array."""
    x = stored.decode() if isinstance(stored, storage.Blocks) else stored
    return jnp.asarray(x, jnp.float32)


def gradients(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def follow(tx: Any, *steps: Any) -> tuple[Any, Any]:
    state = tx.init(steps[0])
    for g in steps:
        updates, state = tx.update(g, state)
    return updates, state


# --- slow averages are not swamped ---------------------------------------------------------------

#: How far an element's average over 12,000 steps may be from the truth, as a root mean square.
BOUNDS = {"eight_bit": 0.03, "four_bit": 0.075, "float8": 0.06, "bfloat16": 0.03}
STEPS, LANES = 20_000, 256


@pytest.fixture(scope="module")
def draws() -> Any:
    return jnp.asarray(np.random.default_rng(0).random((STEPS, LANES), np.float32))


def averages(form: Any, draws: Any) -> tuple[Any, Any]:
    """Each element's mean and mean square, b = .999: at the end, and on average of the last 12,000.

    Draws are uniform, so that of both the truth is one half: of their mean, and, in a row of its
    own, of their roots' mean square.
    """
    tx = adam_jax.scale_by_adam(0.999, 0.999, **both(form))

    def found(state: Any) -> Any:
        return jnp.stack([decoded(state.mu)[0], decoded(state.nu)[1]])

    def step(carry: Any, u: Any) -> Any:
        state, total = carry
        _, state = tx.update(jnp.stack([u, jnp.sqrt(u)]), state)
        return (state, total + jnp.where(state.count > 8000, found(state), 0)), None

    start = (tx.init(jnp.zeros((2, LANES))), jnp.zeros((2, LANES)))
    (state, total), _ = jax.jit(lambda draws: jax.lax.scan(step, start, draws))(draws)
    return np.asarray(found(state)), np.asarray(total) / 12_000


def rms(x: Any) -> Any:
    return np.sqrt(np.mean(x**2, axis=1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", BOUNDS)
def test_slow_averages_are_found_and_to_nearest_are_not(kind: str, draws: Any) -> None:
    make = {**KINDS, "bfloat16": storage.bfloat16}[kind]
    size = {} if kind == "bfloat16" else {"min_size": 0}
    last, average = averages(make(**size), draws)
    np.testing.assert_allclose(average.mean(axis=1), 0.5, atol=0.01)
    np.testing.assert_allclose(last.mean(axis=1), 0.5, atol=0.05)
    assert np.all(rms(average - 0.5) < BOUNDS[kind])

    last, average = averages(make(rounding="nearest", **size), draws)
    assert np.all(rms(average - 0.5) > BOUNDS[kind])
    if kind == "eight_bit":
        assert last[1].mean() == pytest.approx(0.61, abs=0.06)
    if kind == "bfloat16":
        assert np.all(last == 0.25)


@every_kind
def test_a_mean_square_decays_by_chance_and_to_nearest_it_stays(kind: str) -> None:
    """Of a block whose largest element stays, the others fall to 37% of it; or never."""
    g = jnp.zeros((64, 128)).at[:, 0].set(10.0)

    def after(rounding: str) -> Any:
        form = KINDS[kind](128, rounding=rounding, min_size=0)
        tx = adam_jax.scale_by_adam(nu_dtype=form)

        @jax.jit
        def run() -> Any:
            start = form.encode(jnp.full(g.shape, 100.0), adam_jax.Moment(signed=False), None)
            state = tx.init(g)._replace(nu=start)
            return jax.lax.scan(lambda s, _: (tx.update(g, s)[1], None), state, length=1000)[0]

        return np.asarray(decoded(run().nu))[:, 1:]

    assert after("stochastic").mean() == pytest.approx(100 * 0.999**1000, rel=0.03)
    assert np.all(after("nearest") > 99)


# --- which leaves are stored so ------------------------------------------------------------------


def test_leaves_under_4096_elements_stay_in_float32() -> None:
    """A small leaf in a big tree too; and a large one whatever its axes."""
    params = {
        "big": jnp.ones((64, 64)),
        "long": jnp.ones(4096),
        "small": jnp.ones(4095),
        "norm": jnp.ones((63, 65)),
        "scalar": jnp.ones(()),
        "none": None,
    }

    def init(form: Any) -> Any:
        return jax.eval_shape(adam_jax.adam(1e-3, **both(form)).init, params)[0]

    for make in KINDS.values():
        state = init(make())
        for moment in (state.mu, state.nu):
            assert {k for k, x in moment.items() if isinstance(x, storage.Blocks)} == {
                "big",
                "long",
            }
            assert {x.dtype for x in (moment[k] for k in ("small", "norm", "scalar"))} == {
                jnp.dtype(jnp.float32)
            }
        every = init(make(min_size=0))
        assert all(isinstance(every.mu[k], storage.Blocks) for k in params if k != "none")
        some = init(make(min_size=4097))
        assert not any(isinstance(x, storage.Blocks) for x in some.nu.values())


@every_kind
def test_a_small_leaf_is_updated_as_in_float32(kind: str) -> None:
    """Bit for bit, beside a big one that is not."""
    steps = [{"b": gradients(64, seed=i), "w": gradients(64, 64, seed=9 + i)} for i in range(3)]
    updates, state = follow(adam_jax.scale_by_adam(**both(KINDS[kind]())), *steps)
    exact, exact_state = follow(adam_jax.scale_by_adam(), *steps)
    assert_same_bits(updates["b"], exact["b"])
    assert_same_bits((state.mu["b"], state.nu["b"]), (exact_state.mu["b"], exact_state.nu["b"]))
    assert not np.array_equal(updates["w"], exact["w"])


def test_a_function_chooses_by_path_and_shape() -> None:
    """It is asked once for each leaf and moment, with a key path and a shape."""
    asked = []

    def choose(path: Any, leaf: Any) -> Any:
        asked.append((path, leaf))
        name = jax.tree_util.keystr(path)
        if "embed" in name:
            return storage.float32()
        if "norm" in name:
            return None
        if "head" in name:
            return jnp.bfloat16
        return storage.eight_bit()

    params = {
        "embed": jnp.ones((100, 64), jnp.bfloat16),
        "layer": [{"w": jnp.ones((64, 64)), "norm": jnp.ones(5000)}, {"w": jnp.ones(64)}],
        "head": jnp.ones((64, 100)),
    }
    tx = adam_jax.scale_by_adam(mu_dtype=choose, nu_dtype=storage.four_bit())
    state = jax.eval_shape(tx.init, params)
    expected = jax.tree_util.tree_leaves_with_path(params)
    assert [path for path, _ in asked] == [path for path, _ in expected]
    for (_, leaf), (_, p) in zip(asked, expected, strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (p.shape, p.dtype)

    def kinds(moment: Any) -> list[str]:
        nodes = [moment["embed"], moment["layer"][0]["w"], moment["layer"][0]["norm"]]
        nodes += [moment["layer"][1]["w"], moment["head"]]
        return [x.kind if isinstance(x, storage.Blocks) else str(x.dtype) for x in nodes]

    assert kinds(state.mu) == ["float32", "eight_bit", "float32", "float32", "bfloat16"]
    assert kinds(state.nu) == ["four_bit", "four_bit", "four_bit", "float32", "four_bit"]
    asked.clear()
    _, new = jax.eval_shape(tx.update, params, state)
    assert len(asked) == 5
    assert jax.tree.structure(new) == jax.tree.structure(state)
    asked.clear()
    jax.eval_shape(adam_jax.scale_by_adam(**both(choose)).init, params)
    assert len(asked) == 10  # once a leaf and moment


def test_a_function_that_chooses_nothing_of_use_is_refused() -> None:
    tx = adam_jax.scale_by_adam(mu_dtype=lambda path, leaf: "tiny")
    with pytest.raises(TypeError, match=r"^`mu_dtype` must be float32, .* got 'tiny'$"):
        tx.init(jnp.ones(3))


@every_kind
def test_the_gradients_dtype_does_not_choose(kind: str) -> None:
    tx = adam_jax.scale_by_adam(**both(KINDS[kind]()))
    params = {"w": gradients(64, 64), "b": jnp.ones(64)}
    state = tx.init(params)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float8_e5m2):
        low = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
        updates, new = jax.eval_shape(tx.update, low, state)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert jax.tree.structure(jax.eval_shape(tx.init, low)) == jax.tree.structure(state)
        assert updates["w"].dtype == dtype
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    assert_same_bits(tx.update(low, state)[1], tx.update(wide, state)[1])


# --- the two moments apart -----------------------------------------------------------------------

FORMATS: dict[str, Any] = {
    "float32": storage.float32(),
    "bfloat16": storage.bfloat16(),
    **{kind: make(min_size=0) for kind, make in KINDS.items()},
}


def kind_of(stored: Any) -> str:
    return stored.kind if isinstance(stored, storage.Blocks) else str(stored.dtype)


@pytest.mark.parametrize("nu", FORMATS)
@pytest.mark.parametrize("mu", FORMATS)
def test_each_moment_has_a_format_of_its_own(mu: str, nu: str) -> None:
    tx = adam_jax.scale_by_adam(mu_dtype=FORMATS[mu], nu_dtype=FORMATS[nu])
    g = jnp.ones((3, 100))
    state = jax.eval_shape(tx.init, g)
    assert (kind_of(state.mu), kind_of(state.nu)) == (mu, nu)
    assert jax.eval_shape(tx.update, g, state)[1] == state


@pytest.mark.costly
@pytest.mark.parametrize(("mu", "nu"), list(itertools.pairwise([*FORMATS, "float32"])), ids=str)
def test_no_moment_is_changed_by_the_format_of_the_other(mu: str, nu: str) -> None:
    """It rounds by bits of its own."""
    tx = adam_jax.scale_by_adam(mu_dtype=FORMATS[mu], nu_dtype=FORMATS[nu])
    g = gradients(3, 100)
    updates, state = follow(tx, g)
    assert_same_bits(state.mu, follow(adam_jax.scale_by_adam(mu_dtype=FORMATS[mu]), g)[1].mu)
    assert_same_bits(state.nu, follow(adam_jax.scale_by_adam(nu_dtype=FORMATS[nu]), g)[1].nu)
    assert_same_bits(updates, follow(adam_jax.scale_by_adam(), g)[0])


@every_kind
def test_the_first_step_is_float32s_and_the_next_is_of_what_was_stored(kind: str) -> None:
    first, second = gradients(70, 90), gradients(70, 90, seed=1)
    tx, exact = adam_jax.adam(0.1, **both(KINDS[kind]())), adam_jax.adam(0.1)
    updates, state = follow(tx, first)
    expected, exact_state = follow(exact, first)
    assert_same_bits(updates, expected)
    updates, _ = tx.update(second, state)
    expected, _ = exact.update(second, exact_state)
    assert np.mean(updates != expected) > 0.5
    # It is the step of a float32 state that holds what these blocks decode to.
    rest = exact_state[0]._replace(mu=decoded(state[0].mu), nu=decoded(state[0].nu))
    np.testing.assert_allclose(
        updates, exact.update(second, (rest, *exact_state[1:]))[0], rtol=1e-5, atol=1e-7
    )


@every_kind
def test_the_largest_gradients_do_not_lose_their_mean_square(kind: str) -> None:
    """Held where their squares are finite, they give the steps of any constant gradient."""
    tx = adam_jax.scale_by_adam(**both(KINDS[kind](128, rounding="nearest", min_size=0)))
    g = jnp.full(128, jnp.finfo(jnp.float32).max)

    def step(state: Any, _: Any) -> Any:
        updates, state = tx.update(g, state)
        return state, (updates.min(), updates.max())

    _, (least, most) = jax.lax.scan(step, tx.init(g), length=3000)
    np.testing.assert_allclose(least, 1, rtol=1e-2)
    np.testing.assert_allclose(most, 1, rtol=1e-2)


# --- the state is a plain pytree -----------------------------------------------------------------


@pytest.mark.exhaustive
@every_kind
def test_the_state_is_a_plain_pytree(kind: str) -> None:
    tx = adam_jax.adam(1e-3, **both(KINDS[kind](min_size=0)))
    g = {"w": gradients(7, 300), "b": gradients(5)}
    _, state = follow(tx, g)
    leaves, treedef = jax.tree.flatten(state)
    assert all(isinstance(x, jax.Array) for x in leaves)
    assert_same_bits(treedef.unflatten(leaves), state)
    assert jax.tree.structure(jax.tree.map(lambda x: x, state)) == treedef
    assert jax.tree.map(lambda x: x.shape, state)[0].mu["w"].codes[0] == 7
    assert hash(treedef) == hash(jax.tree.structure(tx.init(g)))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert "[0].mu['w'].codes" in names
    assert "[0].nu['b'].scales" in names
    zeros = optax.tree_utils.tree_zeros_like(state)
    assert not np.any(decoded(zeros[0].mu["w"]))
    np.testing.assert_array_equal(optax.tree_utils.tree_get(state, "count"), 1)


@every_kind
def test_the_state_survives_files(kind: str) -> None:
    """As a pickle, and as an ``npz`` of its leaves, after which steps go on as if never stopped."""
    tx = adam_jax.adam(1e-3, **both(KINDS[kind](min_size=0)))
    g = {"w": gradients(7, 300), "b": gradients(5)}
    _, state = follow(tx, g)
    expected = tx.update(g, state)

    restored = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert_same_bits(tx.update(g, restored), expected)

    leaves, _ = jax.tree.flatten(state)
    file = io.BytesIO()
    # NumPy's files know no float8: its bytes do as well.
    np.savez(file, *(np.asarray(x).view(np.uint8) if x.dtype.itemsize == 1 else x for x in leaves))
    file.seek(0)
    with np.load(file) as saved:
        template = jax.tree.leaves(jax.eval_shape(tx.init, g))
        loaded = [
            jnp.asarray(saved[f"arr_{i}"].view(x.dtype)).reshape(x.shape)
            for i, x in enumerate(template)
        ]
    restored = jax.tree.structure(tx.init(g)).unflatten(loaded)
    assert_same_bits(tx.update(g, restored), expected)


@every_kind
def test_steps_scan_are_traced_once_and_donate_their_state(kind: str) -> None:
    tx = adam_jax.adam(1e-3, **both(KINDS[kind]()))
    g = {"w": gradients(65, 100), "b": gradients(5)}
    traces = 0

    def step(state: Any, _: Any = None) -> Any:
        nonlocal traces
        traces += 1
        return tx.update(g, state)[1], None

    scanned, _ = jax.lax.scan(step, tx.init(g), length=3)
    traces = 0
    jitted = jax.jit(step, donate_argnums=0)
    state = tx.init(g)
    for _ in range(3):
        old = jax.tree.leaves(state)
        state, _ = jitted(state)
        assert all(x.is_deleted() for x in old)
    assert traces == 1
    assert_same_bits(state, scanned)


# --- seeds ---------------------------------------------------------------------------------------


@every_kind
def test_bits_follow_from_the_seed_and_differ_from_leaf_to_leaf(kind: str) -> None:
    g = gradients(64, 64)

    def moments(seed: int) -> Any:
        tx = adam_jax.adam(1e-3, **both(KINDS[kind](), seed=seed))
        return follow(tx, {"a": g, "b": g}, {"a": g, "b": g})[1][0]

    one, again, other = moments(1), moments(1), moments(2)
    assert_same_bits(one, again)
    for moment, another in ((one.mu, other.mu), (one.nu, other.nu)):
        a, b, c = (np.asarray(decoded(x)) for x in (moment["a"], moment["b"], another["a"]))
        assert 0.05 < np.mean(a != b) < 0.95
        assert 0.05 < np.mean(a != c) < 0.95
        np.testing.assert_allclose(a.mean(), b.mean(), atol=0.01)


@every_kind
def test_to_nearest_no_seed_matters(kind: str) -> None:
    form, g = KINDS[kind](rounding="nearest"), gradients(64, 64)
    one, other = (follow(adam_jax.adam(1e-3, **both(form, seed=s)), g, g)[1] for s in (1, 2))
    assert_same_bits(one, other)


# --- bad input -----------------------------------------------------------------------------------

BAD = [
    ((7,), {}, ValueError, "`block_size` must be a positive even number, got 7"),
    ((0,), {}, ValueError, "`block_size` must be a positive even number, got 0"),
    ((-2,), {}, ValueError, "`block_size` must be a positive even number, got -2"),
    ((2.5,), {}, TypeError, "`block_size` must be a positive even number, got 2.5"),
    ((True,), {}, TypeError, "`block_size` must be a positive even number, got True"),
    (("64",), {}, TypeError, "`block_size` must be a positive even number, got '64'"),
    ((), {"rounding": "up"}, ValueError, "`rounding` must be 'nearest' or 'stochastic', got 'up'"),
    ((), {"rounding": None}, ValueError, "`rounding` must be 'nearest' or 'stochastic', got None"),
    ((), {"min_size": -1}, ValueError, "`min_size` must be an integer >= 0, got -1"),
    ((), {"min_size": 0.5}, TypeError, "`min_size` must be an integer >= 0, got 0.5"),
]


@every_kind
@pytest.mark.parametrize(("given", "named", "error", "message"), BAD, ids=str)
def test_bad_arguments_are_refused(
    kind: str, given: Any, named: Any, error: Any, message: str
) -> None:
    with pytest.raises(error) as caught:
        KINDS[kind](*given, **named)
    assert str(caught.value) == message


@every_kind
def test_integers_of_any_kind_are_sizes(kind: str) -> None:
    assert KINDS[kind](np.int64(64), min_size=np.uint8(3)) == KINDS[kind](64, min_size=3)


@pytest.mark.parametrize("argument", ["mu_dtype", "nu_dtype"])
@pytest.mark.parametrize(
    "function", [*KINDS.values(), storage.float32, storage.bfloat16], ids=lambda f: f.__name__
)
def test_a_format_that_was_not_called_is_refused(argument: str, function: Any) -> None:
    with pytest.raises(TypeError) as caught:
        adam_jax.adam(1e-3, **{argument: function})
    made = f"storage.{function.__name__}"
    assert str(caught.value) == (
        f"`{argument}` must be float32, float64, bfloat16 or a storage format,"
        f" got the function {made}; call it: {made}()"
    )


@every_kind
def test_leaves_that_no_format_holds_are_refused_by_name(kind: str) -> None:
    tx = adam_jax.adam(1e-3, **both(KINDS[kind]()))
    with pytest.raises(TypeError) as caught:
        tx.init({"w": jnp.ones((64, 64), jnp.complex64)})
    form = KINDS[kind]()
    assert str(caught.value) == f"params['w'] is complex64[64, 64]; its moments cannot be {form}"
    with pytest.raises(TypeError, match=r"^params\['w'\] must be floating or complex, got int32$"):
        tx.init({"w": jnp.ones((64, 64), jnp.int32)})
    # Of a complex parameter the magnitude is real, and small ones are float32.
    adam_jax.adam(1e-3, nu_dtype=KINDS[kind]()).init({"w": jnp.ones((64, 64), jnp.complex64)})
    tx.init({"w": jnp.ones(3, jnp.complex64)})


OTHERS = [
    (
        storage.eight_bit(),
        storage.four_bit(),
        "eight_bit(block_size=256)",
        "four_bit(block_size=128)[64, 64]",
    ),
    (
        storage.float8(),
        storage.eight_bit(128),
        "float8(block_size=128)",
        "eight_bit(block_size=128)[64, 64]",
    ),
    (
        storage.eight_bit(),
        storage.eight_bit(128),
        "eight_bit(block_size=256)",
        "eight_bit(block_size=128)[64, 64]",
    ),
    (
        storage.four_bit(),
        storage.four_bit(64),
        "four_bit(block_size=128)",
        "four_bit(block_size=64)[64, 64]",
    ),
    (storage.eight_bit(), None, "eight_bit(block_size=256)", "float32[64, 64]"),
    (storage.float8(), storage.bfloat16(), "float8(block_size=128)", "bfloat16[64, 64]"),
    (None, storage.eight_bit(), "float32 or wider", "eight_bit(block_size=256)[64, 64]"),
    (storage.float32(), storage.float8(), "float32", "float8(block_size=128)[64, 64]"),
    (storage.bfloat16(), storage.four_bit(), "bfloat16", "four_bit(block_size=128)[64, 64]"),
]


@pytest.mark.parametrize("field", ["mu", "nu"])
@pytest.mark.parametrize(("wanted", "given", "name", "found"), OTHERS, ids=str)
def test_a_state_of_another_format_is_refused_by_the_leafs_path(
    field: str, wanted: Any, given: Any, name: str, found: str
) -> None:
    params = {"dense": {"w": jnp.ones((64, 64)), "z": jnp.ones(64)}}
    state = jax.eval_shape(adam_jax.scale_by_adam(**{f"{field}_dtype": given}).init, params)
    with pytest.raises(ValueError, match="must be") as caught:
        adam_jax.scale_by_adam(**{f"{field}_dtype": wanted}).update(params, state)
    assert str(caught.value).startswith(f"state.{field}['dense']['w'] must be {name}, got {found};")
    assert "\n" not in str(caught.value)


@every_kind
def test_gradients_of_another_shape_are_refused(kind: str) -> None:
    tx = adam_jax.scale_by_adam(**both(KINDS[kind]()))
    with pytest.raises(
        ValueError, match=r"has shape \(64, 65\); the state was built for \(64, 64\)"
    ):
        tx.update({"w": jnp.ones((64, 65))}, jax.eval_shape(tx.init, {"w": jnp.ones((64, 64))}))


@every_kind
def test_the_rounding_is_no_part_of_the_state(kind: str) -> None:
    """So that it may change in the middle of a run."""
    g = jnp.ones((64, 64))
    nearest, stochastic = (
        adam_jax.scale_by_adam(**both(KINDS[kind](rounding=rounding)))
        for rounding in ("nearest", "stochastic")
    )
    state = jax.eval_shape(nearest.init, g)
    _, new = jax.eval_shape(stochastic.update, g, state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
