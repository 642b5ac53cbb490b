"""What begins again steps softly, and what stays keeps its bits, in every format."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits, assert_same_kind, configured
from family import FORMATS, mostly
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from surgery_cases import KINDS, MAGNITUDES, MEMBERS, both_values, trained, tree, values

import adam_jax
from adam_jax import storage
from adam_jax.averaging import average_params, averaged_params
from adam_jax.services.with_metrics import read_metrics
from adam_jax.storage.at_rest import decoded, written
from adam_jax.surgery import grow, reset

every_member = pytest.mark.parametrize("member", mostly(("adam", "adam_mini"), MEMBERS))


def assert_began_again(before, after, name, gone):
    """Rows of one field's moments of the leaf ``embed``; those of ``out`` are as before."""
    if name[-1] == "out":
        np.testing.assert_array_equal(after, before)
        return
    np.testing.assert_array_equal(after[~gone], before[~gone])
    if name[0] in MAGNITUDES:
        mean = before[~gone].mean()
        np.testing.assert_allclose(after[gone], mean, rtol=FORMATS[name[1]].precision)
    else:
        assert np.any(before[gone] != 0)
        np.testing.assert_array_equal(after[gone], 0)


@pytest.mark.exhaustive
@every_member
def test_rows_begin_again_in_every_format(member):
    (tx, kinds), params, (update, state) = MEMBERS[member], tree(member), trained(member)
    rows = np.asarray([False, False, False, False, True])
    mask = jax.tree.map(lambda _: jnp.asarray(rows[:, None]), params)
    mask[kinds[0]]["out"] = False
    new = jax.jit(lambda state: reset(tx, state, params, mask))(state)
    assert_same_kind(new, state)
    both = values(state), values(new)
    for name, before in both[0].items():
        if before.ndim == 0:
            assert both[1][name] == before == 3  # the count
        else:
            assert_began_again(before, both[1][name], name, rows)

    without, updates = (update(tree(member, 4), s, params)[0] for s in (state, new))
    assert_same_bits(updates[kinds[0]]["out"], without[kinds[0]]["out"])
    for name in kinds:
        a, b = updates[name]["embed"], without[name]["embed"]
        assert_same_bits(a[~rows], b[~rows])
        assert np.all(np.isfinite(a))
        assert np.any(a[rows] != b[rows])


@pytest.mark.exhaustive
@every_member
def test_whole_parameters_begin_again(member):
    """With a mask that ends above the leaves, or is one array for several."""
    (tx, kinds), params, (_, state) = MEMBERS[member], tree(member), trained(member)
    last, mask = kinds[-1], dict.fromkeys(kinds, False)
    new = reset(tx, state, params, mask | {last: True})
    before, after = values(state), values(new)
    for name in before:
        if last not in name:
            np.testing.assert_array_equal(after[name], before[name])
        elif name[0] in MAGNITUDES:
            np.testing.assert_allclose(after[name], before[name].mean(), rtol=1e-5)
        else:
            np.testing.assert_array_equal(after[name], 0)
    assert_same_bits(reset(tx, state, params, mask | {last: jnp.full((5, 1), True)}), new)


# --- how long the next steps are -----------------------------------------------------------------


def steps_after(change, steps=40):
    """Adam's directions where its state was changed after 20,000 steps of a gradient of 1."""
    tx, ones = adam_jax.scale_by_adam(), jnp.ones(4)
    late = jax.tree.map(jnp.ones_like, tx.init(ones))._replace(count=jnp.int32(20_000))

    def advance(state, _):
        direction, state = tx.update(ones, state)
        return state, direction[0]

    start = change(tx, late, ones, jnp.asarray([True, False, False, False]))
    return np.asarray(jax.lax.scan(advance, start, None, steps)[1])


def zeroed(tx, state, params, mask):
    return state._replace(mu=jnp.where(mask, 0, state.mu), nu=jnp.where(mask, 0, state.nu))


def test_the_next_steps_grow_from_a_tenth_of_a_learning_rate():
    np.testing.assert_allclose(steps_after(reset), 1 - 0.9 ** np.arange(1, 41), rtol=1e-5)


def test_from_a_mean_square_of_zero_they_would_be_six_times_too_long():
    steps = steps_after(zeroed)
    assert steps[0] == pytest.approx(0.1 / np.sqrt(0.001), rel=1e-5)  # 3.16
    assert steps.max() == pytest.approx(6.57, abs=0.01)
    assert steps[-1] > 4


# --- single entries ------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", KINDS[1:])
def test_blocks_without_such_an_entry_keep_their_bits(name):
    tx = adam_jax.adam(0.1, **FORMATS[name].arguments)
    params = jnp.asarray(np.random.default_rng(0).normal(size=(3, 45)), jnp.float32)
    _, state = tx.update(params, tx.init(params), params)
    new = reset(tx, state, params, jnp.zeros((3, 45), bool).at[1, 6].set(True))
    for old, now in zip(both_values(state), both_values(new), strict=True):
        outside = np.full((3, 45), True)
        outside[1, 4:8] = False
        np.testing.assert_array_equal(now[outside], old[outside])
        assert now[1, 6] != old[1, 6]
        error = np.abs(old - now)[1, [4, 5, 7]]
        assert np.all(error <= FORMATS[name].precision * np.max(np.abs(now[1, 4:8])))
    assert_same_bits(reset(tx, state, params, jnp.zeros((3, 45), bool)), state)
    if name != "bfloat16":  # decoded and encoded, they would not
        everywhere = jnp.full((3, 45), True)
        again = jax.jit(lambda stored: written(stored, decoded(stored), everywhere))(state[0].mu)
        assert np.any(decoded(again) != decoded(state[0].mu))


def test_a_mean_square_beside_a_much_larger_one_does_not_become_zero():
    """The nearest code would be 0, and its next step long."""
    tx, params = adam_jax.adam(0.1, nu_dtype=storage.eight_bit(4, min_size=0)), jnp.ones((2, 4))
    gradients = jnp.asarray([[1e-4, 1.0, 1.0, 1.0], [1e3, 1e3, 1e3, 1e3]])
    _, state = tx.update(gradients, tx.init(params))
    row = jnp.asarray([[False, False, False, True], [False, False, False, False]])
    nu = decoded(reset(tx, state, params, row)[0].nu)
    assert float(nu[0, 3]) == pytest.approx(1e3 * 4 / 7, rel=0.02)
    assert bool(jnp.all(nu > 0))
    small = nu[0].at[0].set(decoded(state[0].nu)[0, 0])
    nearest, moment = storage.eight_bit(4, min_size=0), adam_jax.Moment(signed=False)
    assert jax.jit(lambda x: nearest.encode(x, moment, None).decode())(small)[0] == 0


def test_what_is_not_finite_can_be_cured():
    tx, params = adam_jax.scale_by_adam(), jnp.ones(4)
    mu = jnp.asarray([0.1, jnp.nan, jnp.inf, 0.3])
    state = tx.init(params)._replace(mu=mu, nu=mu**2)
    new = reset(tx, state, params, ~jnp.isfinite(mu))
    np.testing.assert_allclose(new.mu, [0.1, 0, 0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(new.nu, [0.01, 0.05, 0.05, 0.09], rtol=1e-6)
    assert bool(jnp.all(jnp.isfinite(reset(tx, state, params, True).nu)))


def test_what_a_block_shares_begins_again_with_all_of_the_block():
    tx, params = adam_jax.adam_mini(0.1), {"embed": jnp.ones((3, 4))}
    g = {"embed": jnp.arange(12.0).reshape(3, 4)}
    _, state = tx.update(g, tx.init(params), params)
    mask = jnp.zeros((3, 4), bool).at[1].set(True).at[2, 1:].set(True)
    before, after = (s[0].nu["embed"][:, 0] for s in (state, reset(tx, state, params, mask)))
    np.testing.assert_allclose(after, [before[0], (before[0] + before[2]) / 2, before[2]])


def test_copies_of_the_parameters_begin_at_the_parameters():
    """And so does an average; at 0, both would be far off."""
    inner = optax.chain(adam_jax.adam(0.1), average_params(0.9))
    tx, old = adam_jax.master_weights(inner), jnp.ones(3, jnp.bfloat16)
    _, state = tx.update(old, tx.init(old), old)
    params = jnp.asarray([1.0, 7.0, 1.0], jnp.bfloat16)
    new = reset(tx, state, params, jnp.asarray([False, True, False]))
    np.testing.assert_allclose(averaged_params(new), [0.9, 7, 0.9], rtol=1e-6)
    np.testing.assert_allclose(new.master, [0.9, 7, 0.9], rtol=1e-6)


# --- other states and programs -------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass
class Norm:
    """A module that has a ``shape``, as some of Equinox's have."""

    w: jax.Array
    shape: tuple[int, ...] = field(default=(2, 2), metadata={"static": True})


PARAMS = {"norm": Norm(jnp.ones(3)), "none": None, "empty": jnp.ones((0, 2)), "s": jnp.ones(())}
LABELS = {"norm": "a", "none": "a", "empty": "b", "s": "b"}
OTHERS = {
    "partition": optax.multi_transform({"a": optax.adam(0.1), "b": optax.lion(0.1)}, LABELS),
    "accumulated": optax.MultiSteps(adam_jax.adam(0.1), 2).gradient_transformation(),
    "hyperparameters": optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=1),
    "stateless": optax.sgd(0.1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_states_of_others(name):
    tx = OTHERS[name]
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    for _ in range(3):
        _, state = update(PARAMS, state, PARAMS)
    new = reset(tx, state, PARAMS, {"norm": True, "none": False, "empty": True, "s": False})
    assert jax.tree.structure(new) == jax.tree.structure(state)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    pairs = zip(leaves, jax.tree.leaves(new), strict=True)
    changed = [jax.tree_util.keystr(k) for (k, a), b in pairs if not np.array_equal(a, b)]
    assert all("norm" in path for path in changed)
    assert bool(changed) == (name != "stateless")
    assert_same_bits(grow(tx, state, PARAMS), state)


def guarded():
    """Adam amid services that remember something of all parameters together."""
    clipped = optax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adam(0.1))
    averaged = adam_jax.accumulate(
        adam_jax.with_hyperparameters(lambda _: clipped, _=0.5), jnp.asarray(2)
    )
    return adam_jax.with_metrics(adam_jax.skip_unstable(averaged, threshold=6.0))


METRICS = len(read_metrics(guarded().init(jnp.ones(2))))


@pytest.mark.costly
@pytest.mark.parametrize("shape", [(), (128,), (METRICS,)], ids=["number", "window", "metrics"])
def test_what_is_of_all_parameters_stays_beside_one_array_of_its_shape(shape):
    tx, params = guarded(), jnp.ones(shape)
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(19):
        _, state = update(params, state, params, value=1.0)
    new = reset(tx, state, params, True)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    pairs = zip(leaves, jax.tree.leaves(new), strict=True)
    changed = {path[-1].name for (path, a), b in pairs if not np.array_equal(a, b)}
    assert changed == {"mu", "accumulator"}  # the mean square is the mean of others: itself
    assert adam_jax.memory(tx, params).moments == ("accumulator", "mu", "nu")
    _, new = update(jnp.full(shape, 1e30), new, params, value=1.0)
    assert int(new.inner_state.skipped_total) == 1


def test_parameters_that_are_one_array_in_a_scan():
    tx, params = adam_jax.adam(0.1), jnp.ones(4)

    def advance(state, t):
        _, state = tx.update(params, state)
        return reset(tx, state, params, (t == 5) & (jnp.arange(4) > 1)), state[0].mu

    state, mus = jax.jit(lambda s: jax.lax.scan(advance, s, jnp.arange(8)))(tx.init(params))
    assert int(state[0].count) == 8
    sizes = 1 - 0.9 ** np.asarray([[6, 6, 6, 6], [7, 7, 1, 1]])
    np.testing.assert_allclose(mus[5:7], sizes, rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_shards_stay_where_they_are(kind):
    kinds = getattr(jax.sharding, "AxisType", None)
    axes = {"axis_types": (getattr(kinds, kind),) * 2} if kinds else {}
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"), **axes)
    place = NamedSharding(mesh, P("x", "y"))
    tx = adam_jax.lion(0.1, mu_dtype=storage.eight_bit(8, min_size=0))
    params = jax.device_put(jnp.ones((8, 16)), place)
    state = jax.jit(tx.init)(params)
    larger = jax.device_put(jnp.ones((12, 16)), place)
    for new in (reset(tx, state, params, jnp.eye(8, 1, dtype=bool)), grow(tx, state, larger)):
        for x in jax.tree.leaves(new):
            assert x.ndim == 0 or x.sharding.is_equivalent_to(place, 2)


def test_strict_settings():
    with configured({"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}):
        params = {"w": jnp.ones((2, 3), jnp.bfloat16), "c": jnp.ones(3, jnp.complex64)}
        tx = adam_jax.adam(0.1, nu_dtype=jnp.bfloat16)
        state = tx.init(params)
        begun = reset(tx, state, params, {"w": jnp.asarray([True, False, False]), "c": True})
        larger = jax.tree.map(lambda p: jnp.concatenate([p, p]), params)
        grown = grow(tx, state, larger)
        for new, p in ((begun, params), (grown, larger)):
            kinds = [(x.shape, x.dtype) for x in jax.tree.leaves(new)]
            assert kinds == [(x.shape, x.dtype) for x in jax.tree.leaves(tx.init(p))]


@dataclass(frozen=True)
class Own(storage.Format):
    """A format whose states nobody else can write."""

    def encode(self, x, moment, bits):
        return Norm(x, x.shape)

    def decode(self, stored):
        return stored.w

    def holds(self, stored):
        return isinstance(stored, Norm)


def act(mask, tx=None, state=None):
    tx, params = tx or adam_jax.adam(0.1), {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    return reset(tx, tx.init(state or params), params, mask)


ERRORS = {
    "`tx` must be an Optax transformation, got 1": lambda: reset(1, 2, 3, 4),
    "`mask` must be a prefix of the parameters' tree: ": lambda: act([True, False]),
    "`mask` for params['b'] must be True, False or an array of them, got 1.0": (
        lambda: act({"w": True, "b": 1.0})
    ),
    "`mask` for params['w'] has shape (3,), which does not broadcast to (3, 4)": (
        lambda: act({"w": jnp.ones(3, bool), "b": False})
    ),
    "`state` must have the structure of tx.init(params): ": (
        lambda: act(True, state={"w": jnp.ones((3, 4))})
    ),
    "state[0].mu['b'] has shape (5,); for these parameters it is (4,); `grow` is for": (
        lambda: act(True, state={"w": jnp.ones((3, 4)), "b": jnp.ones(5)})
    ),
    "state[0].mu['b'] is Norm; only arrays and Blocks can be changed": (
        lambda: act({"w": False, "b": True}, tx=adam_jax.adam(0.1, mu_dtype=Own()))
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        ERRORS[message]()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
