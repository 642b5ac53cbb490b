"""A state goes on in other formats: what it holds stays, to the precision of the new one."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, configured
from family import FORMATS, MEMBERS
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from saved_states import filled
from test_blockwise import ascending
from training import assert_close, descend, gradients, parameters, stepper

import adam_jax
from adam_jax import convert_state, storage
from adam_jax.storage.at_rest import decoded, is_stored

BLOCK = 4
KINDS = {
    "eight_bit": storage.eight_bit(BLOCK, min_size=0),
    "four_bit": storage.four_bit(BLOCK, min_size=0),
    "float8": storage.float8(BLOCK, min_size=0),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
OWN = {name: member for name, member in MEMBERS.items() if not member.variant}


read = jax.jit(decoded)


def kind_of(tx, params):
    """A new state, of which nothing is made."""
    return jax.eval_shape(tx.init, params)


def adam(stored=None, **settings):
    return adam_jax.adam(0.1, mu_dtype=stored, nu_dtype=stored, **settings)


@functools.cache
def trained():
    """Parameters, and Adam's float32 state with moments over six decades."""
    rng = np.random.default_rng(0)
    params = {"w": jax.ShapeDtypeStruct((6, 11), jnp.float32)}
    size = 10.0 ** rng.uniform(-3, 3, (6, 11))
    draw = [size * rng.normal(size=(6, 11)), (size * rng.normal(size=(6, 11))) ** 2]
    mu, nu = ({"w": jnp.asarray(x, jnp.float32)} for x in draw)
    return params, (optax.ScaleByAdamState(jnp.int32(3), mu, nu), optax.EmptyState())


def in_blocks(x):
    """Rows filled up with zeros to blocks, in float64."""
    x = np.asarray(x, np.float64)
    return np.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK))).reshape(len(x), -1, BLOCK)


def errors_in_gaps(kind, signed, before, after):
    """How far each entry has moved, in distances of the two codes around it.

    What is below the smallest mean square that is not 0 takes that, as if it had been that.
    """
    old, new = in_blocks(before), in_blocks(after)
    codes = ascending(kind, signed)
    scale = np.abs(old).max(-1, keepdims=True) / np.abs(codes).max()
    y = np.clip(old / scale, codes[0], codes[-1])
    y = y if signed else np.where(old > 0, np.maximum(y, codes[codes > 0][0]), y)
    above = np.clip(np.searchsorted(codes, y), 1, len(codes) - 1)
    return (np.abs(new / scale - y) / (codes[above] - codes[above - 1]))[old != 0]


def assert_rounded(kind, before, after, most):
    found = []
    for field, signed in (("mu", True), ("nu", False)):
        old, new = (getattr(state[0], field)["w"] for state in (before, after))
        assert str(new) == f"{kind}(block_size={BLOCK})"
        found.append(np.max(errors_in_gaps(kind, signed, read(old), read(new))))
    assert 0.8 * most < max(found) <= most


@every_kind
def test_to_few_bits_an_entry_moves_by_half_of_the_distance_between_codes(kind):
    params, state = trained()
    new = convert_state(state, adam(KINDS[kind]), params)
    assert_same_kind(new, kind_of(adam(KINDS[kind]), params))
    assert int(new[0].count) == 3
    assert_rounded(kind, state, new, 0.5 + 1e-3)


@every_kind
def test_by_chance_it_moves_by_less_than_the_distance_and_not_on_average(kind):
    params, state = trained()
    change = jax.jit(
        lambda seed: convert_state(
            state, adam(KINDS[kind]), params, rounding="stochastic", seed=seed
        )
    )
    assert_rounded(kind, state, change(0), 1 + 1e-3)
    with pytest.raises(AssertionError):
        assert_rounded(kind, state, change(0), 0.5 + 1e-3)
    mu = np.asarray(state[0].mu["w"])
    scales = np.repeat(np.abs(in_blocks(mu)).max(-1), BLOCK, -1)[:, :11]
    # Not where -1 is cut to the lowest code.
    inside = np.abs(mu) < 0.9 * scales

    def size(found):
        return np.linalg.norm(((read(found[0].mu["w"]) - mu) / scales)[inside])

    drawn = np.mean([read(change(seed)[0].mu["w"]) for seed in range(200)], axis=0)
    error = np.linalg.norm(((drawn - mu) / scales)[inside])
    # Of 200 draws the mean's is 14 times smaller.
    assert error < 0.2 * size(change(0))
    assert error < 0.3 * size(convert_state(state, adam(KINDS[kind]), params))


@every_kind
def test_and_back_to_float32_it_moves_no_more(kind):
    params, state = trained()
    small = convert_state(state, adam(KINDS[kind]), params)
    back = convert_state(small, adam(), params)
    assert_same_kind(back, state)
    for field in ("mu", "nu"):
        stored = read(getattr(small[0], field)["w"])
        assert_close(getattr(back[0], field)["w"], stored, rtol=3e-7)


@pytest.mark.exhaustive
def test_from_few_bits_to_fewer_each_step_rounds_what_the_one_before_left():
    params, state = trained()
    eight = convert_state(state, adam(KINDS["eight_bit"]), params)
    four = convert_state(eight, adam(KINDS["four_bit"]), params)
    back = convert_state(four, adam(), params)
    assert_rounded("eight_bit", state, eight, 0.5 + 1e-3)
    assert_rounded("four_bit", eight, four, 0.5 + 1e-3)
    drawn = convert_state(eight, adam(KINDS["four_bit"]), params, rounding="stochastic")
    with pytest.raises(AssertionError):
        assert_rounded("four_bit", eight, drawn, 0.5 + 1e-3)
    assert_same_kind(back, state)
    assert int(back[0].count) == 3
    for field in ("mu", "nu"):
        assert_close(getattr(back[0], field)["w"], read(getattr(four[0], field)["w"]), rtol=3e-7)


@pytest.mark.costly
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("kind", [*KINDS, "bfloat16"])
def test_no_mean_square_becomes_zero(kind, rounding):
    params = {"w": jax.ShapeDtypeStruct((2, 8), jnp.float32)}
    nu = np.asarray([[1e-37, 1e-20, 1e-8, 0, 1, 1e-30, 1e-12, 1e3]] * 2, np.float32)
    state = optax.ScaleByAdamState(jnp.int32(1), {"w": jnp.zeros((2, 8))}, {"w": jnp.asarray(nu)})
    form = {**KINDS, "bfloat16": storage.bfloat16()}[kind]
    tx = adam_jax.scale_by_adam(nu_dtype=form)
    for seed in range(1 if rounding == "nearest" else 10):
        found = read(convert_state(state, tx, params, rounding=rounding, seed=seed).nu["w"])
        # A block whose magnitudes are linear has no code for 0 either.
        assert not np.any((found == 0) & (nu > 0))


def test_a_float64_mean_square_does_not_become_zero_in_float32(x64):
    params = {"w": jnp.ones(3, jnp.float32)}
    state = adam(jnp.float64).init(params)
    state = (state[0]._replace(nu={"w": jnp.asarray([1e-60, 0.0, 4.0])}), *state[1:])
    nu = convert_state(state, adam(jnp.float32), params)[0].nu["w"]
    assert nu.dtype == jnp.float32
    np.testing.assert_array_equal(nu, np.asarray([np.finfo(np.float32).tiny, 0, 4], np.float32))


def test_what_is_in_its_format_already_keeps_its_bits_and_its_arrays():
    params, state = trained()
    same = convert_state(state, adam(), params)
    pairs = zip(*map(jax.tree.leaves, (same, state)), strict=True)
    assert all(a is b for a, b in pairs)
    small = convert_state(state, adam(KINDS["eight_bit"]), params)
    assert_same_bits(convert_state(small, adam(KINDS["eight_bit"]), params), small)
    other = convert_state(small, adam(storage.eight_bit(BLOCK + 2, min_size=0)), params)
    assert other[0].mu["w"].block_size == BLOCK + 2


def test_formats_may_differ_by_leaf():
    (params, state), more = trained(), {"b": jax.ShapeDtypeStruct((3,), jnp.float32)}

    def choice(path, leaf):
        return KINDS["four_bit"] if leaf.ndim > 1 else jnp.bfloat16

    tx, params = adam(choice), params | more
    three = {"b": jnp.arange(3.0)}
    adams = state[0]._replace(mu=state[0].mu | three, nu=state[0].nu | three)
    new = convert_state((adams, state[1]), tx, params)
    assert_same_kind(new, kind_of(tx, params))
    np.testing.assert_array_equal(new[0].mu["b"], jnp.arange(3, dtype=jnp.bfloat16))
    assert new[0].mu["w"].kind == "four_bit"


ABSTRACT = {
    "w": jax.ShapeDtypeStruct((4, 6), jnp.float32),
    "s": jax.ShapeDtypeStruct((), "float32"),
}


@pytest.mark.costly
@pytest.mark.parametrize("member", OWN)
def test_every_members_state_goes_from_each_format_to_the_next_in_kind(member):
    """Structure, shapes and dtypes; of values, which are the formats' own, other tests tell."""

    def states(name):
        tx = OWN[member].optimizer(0.1, **FORMATS[name].arguments)
        return tx, jax.eval_shape(tx.init, ABSTRACT)

    names = [name for name in FORMATS if not FORMATS[name].variant]
    for start, end in zip(names, names[1:] + names[:1], strict=True):
        (_, before), (tx, wanted) = states(start), states(end)
        found = jax.eval_shape(lambda state, tx=tx: convert_state(state, tx, ABSTRACT), before)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        assert list(map(str, jax.tree.leaves(found))) == list(map(str, jax.tree.leaves(wanted)))


def around(stored):
    """Chain, partition, injected numbers, and services, around optimizers in one format."""
    make = functools.partial(adam_jax.adamw, mu_dtype=stored, nu_dtype=stored)
    numbers = adam_jax.with_hyperparameters(make, learning_rate=optax.constant_schedule(0.1))
    static = {"mu_dtype", "nu_dtype", "seed"}
    inject = optax.inject_hyperparams(adam_jax.adamw, static_args=static)
    injected = inject(0.1, mu_dtype=stored, nu_dtype=stored)
    groups = adam_jax.by_path({"^dense/b": injected, "^scale": adam_jax.FREEZE})
    inner = optax.chain(adam_jax.clip_by_global_norm(1.0), groups(numbers))
    averaged = optax.chain(adam_jax.accumulate(inner, 2), adam_jax.average_params(0.9))
    return adam_jax.with_metrics(adam_jax.skip_unstable(averaged, threshold=6.0))


def test_through_chains_groups_and_services_only_moments_change():
    params = parameters()
    before, after = around(None), around(KINDS["eight_bit"])
    state = jax.tree.map(jnp.abs, filled(before, params))
    new = jax.jit(lambda state: convert_state(state, after, params))(state)
    assert_same_kind(new, kind_of(after, params))
    stored = [x for x in jax.tree.leaves(new, is_leaf=is_stored) if is_stored(x)]
    assert len(stored) == 4  # of a matrix and a bias
    back = jax.jit(lambda state: convert_state(state, before, params))(new)
    for name in ("accumulator", "average", "hyperparams", "count", "norms", "weight"):
        found, expected = (
            [x for _, x in optax.tree_utils.tree_get_all_with_path(s, name)] for s in (back, state)
        )
        assert len(found) == len(expected) > 0
        assert_same_bits(found, expected)
    assert_close(back, state, rtol=0.05, atol=0.05)
    with pytest.raises(AssertionError):
        assert_close(back, state, rtol=1e-6)


def test_training_goes_on_in_few_bits_and_back():
    params = parameters()
    stream = gradients(30, params)
    small = adam(KINDS["eight_bit"])
    step, small_step = stepper(adam()), stepper(small)
    some, state = descend(step, params, adam().init(params), stream[:10])
    whole, _ = descend(step, some, state, stream[10:])
    some, state = descend(small_step, some, convert_state(state, small, params), stream[10:20])
    some, _ = descend(step, some, convert_state(state, adam(), params), stream[20:])
    travelled = np.abs(np.asarray(whole["dense"]["w"] - params["dense"]["w"])).mean()
    apart = np.abs(np.asarray(whole["dense"]["w"] - some["dense"]["w"])).mean()
    assert 0 < apart < 0.05 * travelled


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sharded_state_stays_where_it_is_with_the_same_bits(axis):
    spec = P("x", None) if axis == 0 else P(None, "x")
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()[:2]), ("x",)), spec)
    tx, small = adam(), adam(KINDS["eight_bit"])
    _, state = tx.update({"w": jnp.arange(32.0).reshape(4, 8)}, tx.init({"w": jnp.ones((4, 8))}))
    placed = jax.tree.map(lambda x: jax.device_put(x, sharding) if x.ndim else x, state)
    params = {"w": jax.device_put(jnp.ones((4, 8)), sharding)}
    for change in (convert_state, jax.jit(convert_state, static_argnums=1)):
        new = change(placed, small, params)
        assert_same_bits(new, convert_state(state, small, params))
        for leaf in (new[0].mu["w"].codes, new[0].nu["w"].scales):
            assert leaf.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize(
    "settings", [{"jax_numpy_dtype_promotion": "strict"}, {"jax_debug_nans": True}]
)
def test_under_the_users_strictness(settings):
    params, state = trained()
    with configured(settings):
        new = convert_state(state, adam(storage.bfloat16()), params)
    assert new[0].nu["w"].dtype == jnp.bfloat16


class Mine(storage.Format):
    """A format of one's own, which is no array and no blocks."""

    @jax.tree_util.register_dataclass
    @dataclass
    class Held:
        x: jax.Array
        shape = (2,)

        def decode(self):
            return self.x

    def encode(self, x, moment, bits):
        return Mine.Held(x)

    def decode(self, stored):
        return stored.x

    def holds(self, stored):
        return isinstance(stored, Mine.Held)


REFUSED = {
    "structure": (adam_jax.lion(0.1), "`state` must have the structure of tx.init(params): "),
    "shape": (adam(), "state[0].mu has shape (2,); for these parameters it is (3,)"),
    "format": (adam(Mine()), "state[0].mu would be Held; only arrays and Blocks can be written"),
    "rounding": (adam(), "`rounding` must be 'nearest' or 'stochastic', got 'up'"),
    "tx": (3, "`tx` must be an Optax transformation, got 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_in_one_line(case):
    tx, message = REFUSED[case]
    state = adam().init(jnp.ones(2))
    params = jnp.ones(3 if case == "shape" else 2)
    with pytest.raises((TypeError, ValueError)) as caught:
        convert_state(state, tx, params, rounding="up" if case == "rounding" else "nearest")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_complex_moment_does_not_lose_its_imaginary_part():
    state = adam().init({"w": jnp.ones(2, jnp.complex64)})
    with pytest.raises(
        TypeError, match=r"^state\[0\]\.mu\['w'\] is complex64, and would be float32$"
    ):
        convert_state(state, adam(), {"w": jnp.ones(2)})


def test_a_format_of_ones_own_can_be_left():
    params = jnp.ones(2)
    tx = adam(Mine())
    _, state = tx.update(jnp.ones(2), tx.init(params))
    new = convert_state(state, adam(), params)
    assert_same_kind(new, adam().init(params))
    np.testing.assert_array_equal(new[0].mu, state[0].mu.x)
