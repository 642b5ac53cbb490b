"""Every wrapper of Optax gives around ours what it gives around Optax's own."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from training import assert_close, descend, gradients, moved, parameters, stepper

import adam_jax
from adam_jax import storage

WEIGHTS = {"dense": {"w": True, "b": False}, "scale": False}
LABELS = {"dense": {"w": "decayed", "b": "plain"}, "scale": "frozen"}
partition = getattr(optax, "partition", optax.multi_transform)  # its older name


def injected(factory, **arguments):
    return optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)(**arguments)


# Each takes a module, ours or Optax's.
WRAPPED = {
    "chain": lambda m: optax.chain(
        optax.clip_by_global_norm(1.0), m.scale_by_adam(), optax.scale_by_learning_rate(1e-2)
    ),
    "masked": lambda m: optax.masked(m.adamw(1e-2), WEIGHTS),
    "partition": lambda m: partition(
        {
            "decayed": m.adamw(1e-2, weight_decay=0.5),
            "plain": m.adam(1e-3, nesterov=True),
            "frozen": optax.set_to_zero(),
        },
        LABELS,
    ),
    "MultiSteps": lambda m: optax.MultiSteps(m.adamw(1e-2), 3).gradient_transformation(),
    "apply_if_finite": lambda m: optax.apply_if_finite(m.adam(1e-2), max_consecutive_errors=3),
    "schedule_free": lambda m: optax.contrib.schedule_free(m.adamw(1e-2, b1=0.0), 1e-2),
    "mechanize": lambda m: optax.contrib.mechanize(m.adamw(1e-2), s_init=0.1),
    "sam": lambda m: optax.contrib.sam(
        m.adamw(1e-2), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    ),
    "adversarial": lambda m: optax.contrib.sam(optax.sgd(1e-2), m.adam(0.05), sync_period=3),
}


@pytest.mark.costly
@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_wrapper_gives_what_it_gives_around_optaxs(wrapped):
    params = parameters()
    stream = gradients(12, params)
    ours, theirs = (moved(wrapped(m), params, stream) for m in (adam_jax, optax))
    assert_close(ours, theirs, atol=5e-6, rtol=3e-5)
    assert np.all(ours[0]["dense"]["w"] != params["dense"]["w"])


def test_lookahead():
    params = parameters()
    stream = gradients(12, params)

    def end(module):
        tx = optax.lookahead(module.adamw(1e-2), 5, 0.5, reset_state=True)
        return moved(tx, optax.LookaheadParams.init_synced(params), stream)

    (ours, our_state), (theirs, their_state) = map(end, (adam_jax, optax))
    assert_close(ours, theirs, atol=5e-6)
    assert int(our_state.fast_state[0].count) == 2 == int(their_state.fast_state[0].count)


def test_apply_if_finite_steps_over_nan():
    params = parameters()
    stream = gradients(6, params)
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), stream[0])
    tx = adam_jax.adamw(1e-2)
    careful = optax.apply_if_finite(tx, max_consecutive_errors=2)
    kept, state = moved(careful, params, [*stream[:3], bad, bad, *stream[3:]])
    expected, inner = moved(tx, params, stream)
    assert_close((kept, state.inner_state), (expected, inner), rtol=1e-6, atol=1e-7)
    assert int(state.total_notfinite) == 2


def test_multi_steps_is_one_step_of_the_mean():
    params = parameters()
    stream = gradients(6, params)
    tx = adam_jax.adam(1e-2)
    accumulated, state = moved(optax.MultiSteps(tx, 2), params, stream)
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *pair)
        for pair in zip(stream[::2], stream[1::2], strict=True)
    ]
    expected, inner = moved(tx, params, means)
    assert_close((accumulated, state.inner_opt_state), (expected, inner), rtol=1e-5, atol=1e-7)


def test_opaque_sam_runs_the_gradient_function():
    def loss(params, _=None):
        return sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(params))

    def end(module):
        adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.01))
        tx = optax.contrib.sam(module.adam(0.1), adversary, opaque_mode=True)
        params = parameters()
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            updates, state = tx.update(
                jax.grad(loss)(params), state, params, grad_fn=jax.grad(loss)
            )
            return optax.apply_updates(params, updates), state

        for _ in range(40):
            params, state = step(params, state)
        return params

    ours, theirs = map(end, (adam_jax, optax))
    assert_close(ours, theirs, atol=1e-4)
    assert loss(ours) < 0.1 * loss(parameters())


ARGUMENTS = {
    "learning_rate": (1e-2, 2e-2),
    "b1": (0.9, 0.5),
    "b2": (0.999, 0.9),
    "eps": (1e-8, 1e-2),
    "eps_root": (0.0, 1e-2),
    "weight_decay": (1e-4, 0.5),
}


def test_injected_numbers_change_without_retracing():
    params = parameters()
    stream = gradients(12, params)
    first, second = ({k: v[i] for k, v in ARGUMENTS.items()} for i in (0, 1))
    tx = injected(adam_jax.adamw, **first)
    step = stepper(tx)  # fails if traced twice
    halfway, state = descend(step, params, tx.init(params), stream[:6])
    for name in ARGUMENTS:
        state.hyperparams[name] = jnp.asarray(second[name], jnp.float32)
    end, state = descend(step, halfway, state, stream[6:])

    expected = moved(adam_jax.adamw(**first), params, stream[:6])
    assert_close(halfway, expected[0], atol=1e-6)
    expected = descend(stepper(adam_jax.adamw(**second)), *expected, stream[6:])
    assert_close((end, state.inner_state), expected, rtol=1e-5, atol=2e-6)


def test_injected_schedule():
    params = parameters()
    stream = gradients(12, params)
    schedule = optax.linear_schedule(1e-2, 0.0, 12)
    (ours, our_state), (theirs, their_state) = (
        moved(injected(m.adamw, learning_rate=schedule, b1=0.8), params, stream)
        for m in (adam_jax, optax)
    )
    assert_close(ours, theirs, atol=5e-6)
    numbers = dict(our_state.hyperparams)
    assert int(numbers.pop("seed")) == 0  # the one number that Optax's adamw does not take
    assert_close(numbers, their_state.hyperparams)


def test_injected_numbers_in_bfloat16_are_refused_and_in_float32_they_work():
    params = parameters(jnp.bfloat16)
    stream = gradients(6, params)
    refused = optax.inject_hyperparams(adam_jax.adamw)(1e-2)
    with pytest.raises(TypeError, match=r"`b1` must be float32.*hyperparam_dtype=jnp\.float32"):
        refused.init(params)
    ours = moved(injected(adam_jax.adamw, learning_rate=1e-2), params, stream)
    static = moved(adam_jax.adamw(1e-2), params, stream)
    assert_close(ours[0], static[0], atol=2**-7)  # one rounding of a parameter
    # 1 - b2 is 1.3e-5 off where b2 is the float32 next to 0.999.
    assert_close(ours[1].inner_state[0], static[1][0], rtol=2e-5)


def test_injected_storage_format_and_seed():
    params = parameters()
    formats = {"mu_dtype": storage.bfloat16(), "nu_dtype": storage.bfloat16()}
    numbers = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}
    stream = gradients(6, params)

    def end(seed):
        inject = optax.inject_hyperparams(adam_jax.adam, static_args=numbers)
        return moved(inject(**numbers, **formats, seed=seed), params, stream)[1].inner_state[0].mu

    static = moved(adam_jax.adam(**numbers, **formats, seed=3), params, stream)[1][0].mu
    assert_close(end(3), static)
    assert not np.array_equal(end(4)["dense"]["w"], static["dense"]["w"])


class Plateau:
    """A stateful schedule: halves the rate whenever the loss, an extra argument, has not fallen."""

    def init(self):
        return {"best": jnp.float32(jnp.inf), "rate": jnp.float32(0.1)}

    def update(self, state, *, loss, **_):
        rate = jnp.where(loss < state["best"], state["rate"], state["rate"] / 2)
        return {"best": jnp.minimum(state["best"], loss), "rate": rate}

    def __call__(self, state, **_):
        return state["rate"]


def test_inject_stateful_hyperparams():
    params = parameters()
    stream = gradients(6, params)
    losses = [5.0, 4.0, 4.5, 3.0, 3.5, 2.0]

    def end(module):
        with warnings.catch_warnings():
            # Optax: "inject_stateful_hyperparams is deprecated, use inject_hyperparams"
            warnings.filterwarnings("ignore", "inject_stateful", DeprecationWarning)
            tx = optax.inject_stateful_hyperparams(module.adam)(learning_rate=schedule)
        update = jax.jit(tx.update)
        state, moves = tx.init(params), params
        for gradient, loss in zip(stream, losses, strict=True):
            updates, state = update(gradient, state, params, loss=jnp.float32(loss))
            moves = optax.apply_updates(moves, updates)
        return moves, state.hyperparams["learning_rate"]

    schedule = Plateau()
    (ours, our_rate), (theirs, their_rate) = map(end, (adam_jax, optax))
    assert_close(ours, theirs, atol=2e-5)
    assert float(our_rate) == float(their_rate) == pytest.approx(0.025)


def test_state_is_found_and_set_by_name():
    params = parameters()
    tx = optax.chain(optax.clip(1.0), adam_jax.adamw(optax.constant_schedule(1e-2)))
    state = moved(tx, params, gradients(3, params))[1]
    nu = optax.tree_utils.tree_get(state, "nu")
    assert nu is state[1][0].nu
    assert jax.tree.structure(nu) == jax.tree.structure(params)

    reset = optax.tree_utils.tree_set(state, mu=params, count=jnp.int32(7))
    assert_close(reset[1][0].mu, params)
    counts = optax.tree_utils.tree_get_all_with_path(reset, "count")
    assert [int(count) for _, count in counts] == [7, 7]  # the optimizer's and the schedule's
    assert_close(reset[1][0].nu, nu)


def test_state_is_mapped_where_it_follows_the_parameters():
    params = parameters()
    for dtype in (None, storage.bfloat16()):
        tx = adam_jax.adamw(1e-2, mu_dtype=dtype, nu_dtype=dtype)
        names = optax.tree_utils.tree_map_params(
            tx,
            lambda _, name: name,
            tx.init(params),
            LABELS,
            transform_non_params=lambda x: "no parameter",
        )
        assert names[0] == optax.ScaleByAdamState("no parameter", LABELS, LABELS)
