"""Training moved between Optax and this package, at any point, is as if it had not been moved."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from checks import assert_same_bits, assert_same_kind
from training import assert_close, descend, gradients, parameters, stepper

import adam_jax
from adam_jax import storage
from adam_jax.interop import from_optax, to_optax
from adam_jax.storage.at_rest import decoded


class Optax:
    """Optax with what its `contrib` has."""

    def __getattr__(self, name):
        return getattr(optax, name, None) or getattr(optax.contrib, name)


OPTAX = Optax()
SHARED = {
    "adabelief": {},
    "adam": {"nesterov": True},
    "adamax": {},
    "adamaxw": {},
    "adamw": {"weight_decay": 0.5},
    "ademamix": {},
    "adopt": {},
    "amsgrad": {},
    "lamb": {"weight_decay": 0.1},
    "lion": {},
    "nadam": {},
    "nadamw": {"weight_decay": 0.5},
    "radam": {},
    "yogi": {},
}
partition = getattr(optax, "partition", optax.multi_transform)  # its older name


def family(module):
    """Each member for a leaf of its own, under a schedule."""
    rate = optax.cosine_decay_schedule(1e-3, 40)
    members = {name: getattr(module, name)(rate, **more) for name, more in SHARED.items()}
    return partition(members, {name: name for name in SHARED})


@functools.cache
def leaves():
    rng = np.random.default_rng(0)
    # Away from 0, for what is measured is relative.
    draw = {name: rng.uniform(1, 2, (3, 5)) * rng.choice([-1, 1], (3, 5)) for name in SHARED}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), draw)


@functools.cache
def family_runs():
    """A stream, and for each package a step, and parameters and state after 10 and 30 steps."""
    stream = gradients(30, leaves())
    runs = {}
    for module in (OPTAX, adam_jax):
        tx = family(module)
        step = stepper(tx)
        half = descend(step, leaves(), tx.init(leaves()), stream[:10])
        runs[module] = tx, step, half, descend(step, *half, stream[10:])
    return stream, runs


@pytest.mark.parametrize("move", [from_optax, to_optax], ids=["from_optax", "to_optax"])
def test_every_shared_member_goes_on_as_if_it_had_stayed(move):
    stream, runs = family_runs()
    here, there = (OPTAX, adam_jax) if move is from_optax else (adam_jax, OPTAX)
    _, _, half, (stayed, _) = runs[here]
    tx, step, *_ = runs[there]
    state = move(half[1], tx, leaves())
    pairs = zip(*map(jax.tree.leaves, (state, half[1])), strict=True)
    assert all(new is old for new, old in pairs)  # the tree is the same, and so are the arrays
    assert_same_kind(state, jax.eval_shape(tx.init, leaves()))
    moved, _ = descend(step, half[0], state, stream[10:])
    assert_close(moved, stayed, rtol=1e-6)
    fresh, _ = descend(step, half[0], tx.init(leaves()), stream[10:])
    for name in SHARED:
        with pytest.raises(AssertionError):
            assert_close(fresh[name], stayed[name], rtol=1e-4)


def test_adans_state_moves_and_its_steps_are_the_papers():
    params = {"w": jnp.ones(3)}
    ours, theirs = (m.adan(0.1) for m in (adam_jax, optax))
    g = {"w": jnp.asarray([1.0, -2.0, 3.0])}
    _, state = theirs.update(g, theirs.init(params), params)
    moved = from_optax(state, ours, params)
    assert_same_bits(moved, state)
    g = {"w": jnp.asarray([2.0, 1.0, 3.5])}
    a, b = (tx.update(g, state, params)[0] for tx in (ours, theirs))
    assert not np.allclose(a["w"], b["w"], rtol=1e-3)


# --- other chains, groups and wrappers -----------------------------------------------------------

RATE = optax.cosine_decay_schedule(1e-3, 40)
LABELS = {"dense": {"w": "one", "b": "other"}, "scale": "one"}
OTHER = {"dense": {"w": 0, "b": 1}, "scale": 1}


def injected(module, **more):
    inject = optax.inject_hyperparams(module.adamw, hyperparam_dtype=jnp.float32)
    return inject(learning_rate=RATE, weight_decay=0.1, **more)


TIMES = (
    optax.MultiSteps(optax.adam(RATE), 3).gradient_transformation(),
    adam_jax.accumulate(adam_jax.adam(RATE), 3),
)
step_of = functools.cache(stepper)

# Each a transformation of Optax, one of ours that does the same, and steps until it is moved.
WAYS = {
    "chain": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE)),
        optax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(RATE)),
        5,
    ),
    "parts of a chain": (
        optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(RATE)),
        optax.chain(optax.identity(), optax.chain(adam_jax.adam(RATE))),
        5,
    ),
    "partition": (
        partition({"one": optax.adam(RATE), "other": optax.adam(RATE)}, LABELS),
        adam_jax.adam(RATE),
        5,
    ),
    "other groups": (
        partition({"one": optax.adam(RATE), "other": optax.adam(RATE)}, LABELS),
        partition({0: adam_jax.adam(RATE), 1: adam_jax.adam(RATE)}, OTHER),
        5,
    ),
    "masked": (
        optax.masked(optax.adam(1e-3), {"dense": {"w": True, "b": True}, "scale": True}),
        adam_jax.by_path({"^scale": adam_jax.Scale(learning_rate=1.0)})(adam_jax.adam(1e-3)),
        5,
    ),
    "inject_hyperparams": (injected(optax), injected(adam_jax), 5),
    "with_hyperparameters": (
        injected(optax),
        adam_jax.with_hyperparameters(adam_jax.adamw, learning_rate=RATE, weight_decay=0.1, b2=0.9),
        5,
    ),
    "MultiSteps": (*TIMES, 5),
    "MultiSteps between two steps": (*TIMES, 6),
    "apply_if_finite": (
        optax.apply_if_finite(optax.adam(RATE), 3),
        adam_jax.skip_unstable(adam_jax.adam(RATE)),
        5,
    ),
    "a schedule that begins": (
        optax.adam(1e-3),
        adam_jax.adam(lambda count: jnp.where(count < 5, 0.0, 1e-3)),
        5,
    ),
}


@pytest.mark.costly
@pytest.mark.parametrize("way", WAYS)
def test_out_of_any_wrapper_training_goes_on_and_back(way):
    theirs, ours, steps = WAYS[way]
    params = parameters()
    stream = gradients(25, params)
    their_step, our_step = step_of(theirs), step_of(ours)
    half = descend(their_step, params, theirs.init(params), stream[:steps])
    stayed, _ = descend(their_step, *half, stream[steps:])
    state = from_optax(half[1], ours, params)
    assert_same_kind(state, jax.eval_shape(ours.init, params))
    moved, _ = descend(our_step, half[0], state, stream[steps:])
    assert_close(moved, stayed, rtol=1e-6, atol=1e-7)
    forgotten, _ = descend(our_step, half[0], ours.init(params), stream[steps:])
    with pytest.raises(AssertionError):
        assert_close(forgotten, stayed, rtol=1e-6, atol=1e-5)

    middle = descend(our_step, half[0], state, stream[steps : steps + 7])
    back = to_optax(middle[1], theirs, params)
    assert_same_kind(back, jax.eval_shape(theirs.init, params))
    returned, _ = descend(their_step, middle[0], back, stream[steps + 7 :])
    assert_close(returned, stayed, rtol=1e-6, atol=1e-7)


def test_what_optax_does_not_know_begins_anew_or_is_left_behind():
    params = parameters()
    stream = gradients(4, params)
    inner = optax.chain(adam_jax.adamw(RATE), adam_jax.average_params(0.9))
    ours, theirs = adam_jax.with_metrics(adam_jax.skip_unstable(inner)), optax.adamw(RATE)
    _, state = descend(stepper(theirs), params, theirs.init(params), stream)
    moved = from_optax(state, ours, params)
    assert_same_kind(moved, jax.eval_shape(ours.init, params))
    assert_same_bits(adam_jax.averaged_params(moved), params)
    adam = moved.inner_state.inner_state[0]
    assert adam[0].mu["scale"] is state[0].mu["scale"]
    assert_same_bits(to_optax(moved, theirs, params), state)


def test_moments_in_few_bits_become_arrays_and_back():
    params = {"w": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
    small = storage.eight_bit(4, min_size=0)
    ours, theirs = adam_jax.lion(0.1, mu_dtype=small), optax.lion(0.1)
    mu = {"w": jnp.arange(32.0).reshape(4, 8)}
    kept = (optax.ScaleByLionState(jnp.int32(1), mu), optax.EmptyState(), optax.EmptyState())
    state = from_optax(kept, ours, params)
    assert state[0].mu["w"].kind == "eight_bit"
    out = to_optax(state, theirs, params)
    assert_same_kind(out, jax.eval_shape(theirs.init, params))
    assert_close(out[0].mu["w"], jax.jit(decoded)(state[0].mu["w"]), rtol=3e-7)
    assert_close(out, kept, rtol=0.02)


def test_optaxs_bfloat16_mean_squares_are_widened():
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    ours, theirs = adam_jax.adam(0.1), optax.adam(0.1)
    _, state = theirs.update(params, theirs.init(params), params)
    moved = from_optax(state, ours, params)
    assert_same_kind(moved, jax.eval_shape(ours.init, params))
    np.testing.assert_array_equal(moved[0].nu["w"], state[0].nu["w"].astype(jnp.float32))


def test_a_moved_state_may_be_donated_and_moves_under_jit():
    params = parameters()
    theirs = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(RATE))
    groups = {0: adam_jax.adam(RATE), 1: adam_jax.adam(RATE)}
    ours = partition(groups, OTHER)
    state = theirs.init(params)
    moved = from_optax(state, ours, params)
    arrays = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(moved)]
    assert len(set(arrays)) == len(arrays)
    assert_same_bits(jax.jit(lambda s: from_optax(s, ours, params))(state), moved)


@pytest.mark.parametrize("params", [jnp.float32(1.0), {"learning_rate": jnp.float32(1.0)}])
def test_hyperparameters_are_told_from_moments_of_a_scalar(params):
    theirs, ours = (injected(m, b1=0.8) for m in (optax, adam_jax))
    _, state = theirs.update(params, theirs.init(params), params)
    moved = from_optax(state, ours, params)
    assert_same_kind(moved, jax.eval_shape(ours.init, params))
    assert float(moved.hyperparams["b1"]) == np.float32(0.8)
    assert_same_bits(moved.inner_state[0], state.inner_state[0])


def uneven(module):
    """Two groups that have taken different numbers of steps."""
    tx = partition({"one": module.adam(0.1), "other": module.adam(0.1)}, {"a": "one", "b": "other"})
    state = tx.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    one = state.inner_states["one"]
    adam = one.inner_state[0]._replace(count=jnp.int32(3))
    masked = one._replace(inner_state=(adam, *one.inner_state[1:]))
    return state._replace(inner_states=state.inner_states | {"one": masked})


AB = {"a": jnp.ones(2), "b": jnp.ones(2)}
REFUSED = {
    "another member": (
        optax.adam(0.1).init(AB),
        adam_jax.amsgrad(0.1),
        "`tx` has a ScaleByAmsgradState.count, and `state` none",
    ),
    "two members": (
        optax.chain(optax.scale_by_adam(), optax.scale_by_adam()).init(AB),
        adam_jax.adam(0.1),
        "`tx` has 1 of ScaleByAdamState.mu for params['a'], and `state` 2",
    ),
    "a moment more": (
        optax.chain(optax.trace(0.9), optax.scale_by_adam()).init(AB),
        adam_jax.adam(0.1),
        "state[0].trace['a'] is a moment that `tx` has no place for",
    ),
    "in the middle of a step": (
        optax.MultiStepsState(jnp.int32(1), jnp.int32(0), optax.adam(0.1).init(AB), AB),
        adam_jax.adam(0.1),
        "state.acc_grads['a'] is a moment that `tx` has no place for",
    ),
    "a parameter more": (
        optax.adam(0.1).init({"a": jnp.ones(2)}),
        adam_jax.adam(0.1),
        "`tx` has 1 of ScaleByAdamState.mu for params['a'], and `state` 0",
    ),
    "another shape": (
        optax.adam(0.1).init({"a": jnp.ones(3), "b": jnp.ones(2)}),
        adam_jax.adam(0.1),
        "state[0].mu['a'] has shape (3,); for these parameters it is (2,)",
    ),
    "no schedule": (
        optax.EmptyState(),
        optax.scale_by_schedule(RATE),
        "`tx` has a ScaleByScheduleState.count, and `state` none",
    ),
    "counts": (
        uneven(optax),
        adam_jax.adam(0.1),
        "`state` has several ScaleByAdamState.count, 3 and 0, and `tx` one",
    ),
    "no transformation": (optax.adam(0.1).init(AB), 3, "`tx` must be an Optax transformation"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_moved_is_refused_in_one_line(case):
    state, tx, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)) as caught:
        from_optax(state, tx, AB)
    assert "\n" not in str(caught.value)


def test_counts_of_groups_stay_apart_where_groups_do():
    tx = partition({0: adam_jax.adam(0.1), 1: adam_jax.adam(0.1)}, {"a": 0, "b": 1})
    inner = from_optax(uneven(optax), tx, AB).inner_states
    assert [int(inner[i].inner_state[0].count) for i in (0, 1)] == [3, 0]


def test_only_weights_of_one_can_be_moved_to_multi_steps():
    ours = adam_jax.accumulate(adam_jax.adam(0.1), 3)
    theirs = optax.MultiSteps(optax.adam(0.1), 3)
    _, state = ours.update(AB, ours.init(AB), AB, weight=2.0)
    with pytest.raises(ValueError, match=r"^state\.weight is 2 after 1 gradients; MultiSteps take"):
        to_optax(state, theirs, AB)
    with pytest.raises(
        ValueError, match=r"^state\.accumulator\['a'\] is a moment that `tx` has no"
    ):
        to_optax(state, optax.adam(0.1), AB)
    assert_same_bits(to_optax(ours.init(AB), optax.adam(0.1), AB), optax.adam(0.1).init(AB))
