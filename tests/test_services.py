"""What every service around an optimizer promises, whatever it does: one table, one contract."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_kind, configured
from family import FORMATS, mostly
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from layouts import SCANNED
from test_norms import shard_map
from training import assert_close, gradients, parameters

import adam_jax
from adam_jax.averaging import average_params
from adam_jax.clipping import clip_by_global_norm
from adam_jax.services.accumulate import accumulate
from adam_jax.services.skip_unstable import skip_unstable
from adam_jax.services.with_metrics import with_metrics

# Set so that each leaves the steps by finite gradients as they are without it.
SERVICES = {
    "accumulate": lambda inner: accumulate(inner, jnp.asarray(1)),
    "average_params": lambda inner: optax.chain(inner, average_params(0.99)),
    "by_path": adam_jax.by_path([("", adam_jax.Scale(jnp.float32(1.0)))], allow_unused=True),
    "clip": lambda inner: optax.chain(clip_by_global_norm(3e38), inner),
    "skip_unstable": partial(skip_unstable, threshold=1e30),
    "with_hyperparameters": lambda inner: adam_jax.with_hyperparameters(lambda _: inner, _=1.0),
    "with_metrics": partial(with_metrics, successive=True),
}
every_service = pytest.mark.parametrize("service", SERVICES)
STRICT = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
STEPS = 3


def made(service, storage="default", learning_rate=0.01):
    arguments = FORMATS[storage].arguments
    return SERVICES[service](adam_jax.adamw(learning_rate, weight_decay=0.1, **arguments))


def run(tx, params, stream, jitted=True):
    """The updates by some gradients, at parameters that stay, and the state before and after."""
    start = state = tx.init(params)
    update = jax.jit(tx.update) if jitted else tx.update
    steps = []
    for gradient in stream:
        updates, state = update(gradient, state, params)
        steps.append(updates)
    return steps, start, state


def assert_same(actual, expected):
    """But for how often a sum of products is rounded, which XLA decides by program."""
    assert_close(actual, expected, rtol=1e-6, atol=1e-9)


STORED = [name for name, each in FORMATS.items() if not each.variant]


@pytest.mark.costly
@every_service
@pytest.mark.parametrize("storage", mostly(("default", "four_bit"), STORED))
def test_the_steps_are_those_without_it(service, storage):
    """And the state keeps its kind, in every format."""
    params = parameters()
    stream = gradients(STEPS, params)
    bare, *_ = run(
        adam_jax.adamw(0.01, weight_decay=0.1, **FORMATS[storage].arguments), params, stream
    )
    wrapped, start, state = run(made(service, storage), params, stream)
    assert_same_kind(state, start)
    assert_same(wrapped, bare)


def test_it_would_be_noticed():
    params = parameters()
    stream = gradients(STEPS, params)
    bare, *_ = run(adam_jax.adamw(0.01, weight_decay=0.1), params, stream)
    clipped, *_ = run(optax.chain(clip_by_global_norm(1.0), adam_jax.adamw(0.01)), params, stream)
    with pytest.raises(AssertionError):
        assert_same(clipped, bare)


@pytest.mark.costly
@every_service
@pytest.mark.parametrize(
    "dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16",) * 2]
)
def test_the_state_keeps_its_kind_whatever_the_dtypes(service, dtypes):
    of_params, of_gradients = map(jnp.dtype, dtypes)
    params, tx = parameters(of_params), made(service)
    stream = jax.tree.map(lambda *g: jnp.stack(g).astype(of_gradients), *gradients(STEPS, params))

    def body(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {of_gradients}
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), stream)
    assert_same_kind(state, jax.eval_shape(tx.init, params))
    assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(params))


@pytest.mark.costly
@every_service
def test_traced_once_and_donated(service):
    """But for scalars: one that is overwritten unread, JAX keeps out of the program."""
    params, tx, traces = parameters(), made(service), []
    stream = gradients(STEPS, params)

    def step(params, state, gradient):
        traces.append(1)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    jitted, state = jax.jit(step, donate_argnums=(0, 1)), tx.init(params)
    for gradient in stream:
        old = [x for x in jax.tree.leaves((params, state)) if x.size > 1]
        params, state = jitted(params, state, gradient)
        assert all(x.is_deleted() for x in old)
    assert len(traces) == 1


@pytest.mark.costly
@every_service
@pytest.mark.parametrize(
    "settings", [STRICT, STRICT | {"jax_enable_x64": True}, {"jax_debug_nans": True}]
)
def test_jaxs_strictest_settings_change_nothing(service, settings):
    params = parameters()
    stream = gradients(STEPS, params)
    expected, *_ = run(made(service), params, stream)
    with configured(settings):
        found, _, after = run(made(service), params, stream)
        assert_same_kind(after, jax.eval_shape(made(service).init, params))
    assert_same(found, expected)


@every_service
def test_no_tracer_leaks(service):
    params = {"w": jnp.ones(11)}
    tx = made(service)
    with configured({"jax_check_tracer_leaks": True}):
        new, _ = jax.jit(lambda p: tx.update(p, tx.init(p), p)).eval_shape(params)
    assert new["w"].shape == (11,)


@pytest.mark.costly
@every_service
def test_eager_steps_are_jitted_ones(service):
    params = parameters()
    stream = gradients(STEPS, params)
    jitted, _, _ = run(made(service), params, stream)
    eager, _, _ = run(made(service), params, stream, jitted=False)
    assert_same(eager, jitted)


@pytest.mark.costly
@every_service
def test_an_ensemble_is_its_members(service):
    params = parameters()
    stream = gradients(2 * STEPS, params)
    lanes = [stream[:STEPS], stream[STEPS:]]
    tx = made(service)

    def train(gradients):
        def body(carry, gradient):
            updates, state = tx.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), gradients)[0][0]

    stacked = [jax.tree.map(lambda *g: jnp.stack(g), *lane) for lane in lanes]
    both = jax.jit(jax.vmap(train))(jax.tree.map(lambda *g: jnp.stack(g), *stacked))
    for lane, gradients_ in enumerate(stacked):
        alone = jax.jit(train)(gradients_)
        for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(x[lane], y, rtol=2e-6, atol=1e-7)


@pytest.mark.costly
# A scan of measured steps has no type there.
@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {"with_metrics"}))
def test_over_shards_steps_are_scanned(service):
    """With the loss and the norm over all shards, each takes its part of every step."""
    params = jnp.linspace(-1.0, 1.0, 16)
    stream, tx = jnp.stack(gradients(STEPS, params)), made(service)

    def train(params, stream, norms):
        def step(carry, x):
            (params, state), (gradient, norm) = carry, x
            updates, state = tx.update(gradient, state, params, value=norm, grad_norm=norm)
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, tx.init(params)), (stream, norms))[1]

    norms = jnp.linalg.norm(stream, axis=1)
    mesh = Mesh(np.array(jax.devices()), ("x",))
    over = {"in_specs": (P("x"), P(None, "x"), P()), "out_specs": P(None, "x")}
    shards = jax.jit(shard_map(train, mesh=mesh, **over, **SCANNED))(params, stream, norms)
    assert_same(shards, jax.jit(train)(params, stream, norms))


@pytest.mark.costly
@every_service
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"a": None},
        {"a": None, "w": jnp.ones(3)},
        jnp.ones(()),
        {"w": jnp.ones((0, 3)), "v": jnp.ones(2)},
        {"w": jnp.ones(3, jnp.complex64)},
    ],
    ids=["empty", "none", "hole", "scalar", "no entries", "complex"],
)
def test_any_tree_passes(service, params):
    tx = made(service)
    found, start, state = run(tx, params, [params, params])
    assert_same_kind(state, start)
    bare, *_ = run(adam_jax.adamw(0.01, weight_decay=0.1), params, [params, params])
    assert_same(found, bare)


@pytest.mark.costly
@every_service
@pytest.mark.parametrize("size", [1e-45, 1e-20, 1e20, 3.4e38])
def test_finite_gradients_of_any_size_give_finite_steps(service, size):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    stream = [
        jax.tree.map(lambda p, s=sign: p * s * jnp.float32(size), params) for sign in (1, -1, 1)
    ]
    found, _, state = run(made(service), params, stream)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    # The windows of skip_unstable are infinite where there is nothing yet.
    held = state._replace(norms=None, values=None) if service == "skip_unstable" else state
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(held))


@every_service
def test_extra_arguments_go_on_to_the_optimizer(service):
    seen = []

    def update(updates, state, params=None, **extra_args):
        seen.append(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx, params = SERVICES[service](inner), {"w": jnp.ones(3)}
    tx.update(params, tx.init(params), params, colour="red", value=jnp.float32(1.0))
    assert seen
    assert all(each["colour"] == "red" and each["value"] == 1 for each in seen)


@pytest.mark.parametrize("make", [optax.adam, optax.adan, optax.lamb], ids=lambda f: f.__name__)
@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {"average_params", "clip"}))  # chains
def test_the_state_of_another_optimizer_keeps_its_kind(service, make):
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = SERVICES[service](make(0.1))
    state = tx.init(params)
    _, new = jax.eval_shape(tx.update, {"w": jnp.ones(3)}, state, params)
    assert_same_kind(new, jax.eval_shape(lambda: state))
