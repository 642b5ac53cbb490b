"""What groups have of their own goes where their parameters are, whatever the groups are called."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits

import adam_jax
from adam_jax.interop import from_optax, to_optax

PARAMS = {"embedding": jnp.ones(2), "w": jnp.ones(2), "z": jnp.ones(2)}
PLACES = {"embedding": "embed", "w": "rest", "z": "rest"}
RATES = {"embed": 0.1, "rest": 0.2}
partition = getattr(optax, "partition", optax.multi_transform)  # its older name


def injected(module, rate):
    inject = optax.inject_hyperparams(module.adam, hyperparam_dtype=jnp.float32)
    return inject(learning_rate=rate)


def scheduled(module):
    return module.adam(optax.cosine_decay_schedule(1e-3, 40))


def grouped(make, names, places=PLACES):
    """Groups under other names, which may be in another order."""
    groups = {name: make(group) for group, name in names.items()}
    return partition(groups, jax.tree.map(names.get, places))


def by_path(make):
    return adam_jax.by_path({"^(w|z)": make("rest")})(make("embed"))


# The same groups, in the alphabet's order or in its reverse.
NAMED = {
    "same": lambda make: grouped(make, {"embed": "embed", "rest": "rest"}),
    "renamed": lambda make: grouped(make, {"embed": "a", "rest": "b"}),
    "reversed": lambda make: grouped(make, {"embed": "z", "rest": "a"}),
    "exchanged": lambda make: grouped(make, {"embed": "rest", "rest": "embed"}),
    "by_path": by_path,
    "in a chain": lambda make: optax.chain(
        optax.clip(1.0), grouped(make, {"embed": "z", "rest": "a"})
    ),
}


def with_counts(state, counts):
    """A state in which the counts of the schedules are these, in the order of the tree."""
    left = iter(counts)

    def one(x):
        return x._replace(count=jnp.int32(next(left))) if is_schedule(x) else x

    return jax.tree.map(one, state, is_leaf=is_schedule)


def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)


def updates_of(tx, state):
    return tx.update(PARAMS, state, PARAMS)[0]


@pytest.mark.costly
@pytest.mark.parametrize("names", NAMED)
def test_hyperparameters_go_with_the_parameters_of_their_group(names):
    theirs = NAMED["same"](lambda group: injected(optax, RATES[group]))
    ours = NAMED[names](lambda group: injected(adam_jax, 9.0))
    state = from_optax(theirs.init(PARAMS), ours, PARAMS)
    for name, update in updates_of(ours, state).items():
        np.testing.assert_allclose(update, -RATES[PLACES[name]], rtol=1e-5)
    anew = NAMED["same"](lambda group: injected(optax, 9.0))
    back = updates_of(anew, to_optax(state, anew, PARAMS))
    for name, update in back.items():
        np.testing.assert_allclose(update, -RATES[PLACES[name]], rtol=1e-5)


@pytest.mark.parametrize("names", NAMED)
def test_counts_of_schedules_go_with_the_parameters_of_their_group(names):
    counts = {"embed": 10, "rest": 30}
    theirs = NAMED["same"](lambda group: scheduled(optax))
    ours = NAMED[names](lambda group: scheduled(adam_jax))
    state = with_counts(theirs.init(PARAMS), counts.values())
    updates = updates_of(ours, from_optax(state, ours, PARAMS))
    for name, update in updates.items():
        rate = 1e-3 * 0.5 * (1 + np.cos(np.pi * counts[PLACES[name]] / 40))
        np.testing.assert_allclose(update, -rate, rtol=1e-5)


def test_a_schedule_that_begins_takes_up_at_the_count_of_its_group():
    theirs = NAMED["same"](lambda group: optax.scale_by_adam())
    ours = NAMED["reversed"](lambda group: scheduled(adam_jax))
    state = theirs.init(PARAMS)
    groups = state.inner_states
    later = groups["rest"].inner_state._replace(count=jnp.int32(7))
    state = state._replace(inner_states=groups | {"rest": optax.MaskedState(later)})
    found = from_optax(state, ours, PARAMS).inner_states
    assert [int(found[name].inner_state[1].count) for name in "az"] == [7, 0]


def bare(group):
    """Without moments, by which to know its parameters."""
    return optax.inject_hyperparams(optax.scale)(step_size=RATES[group])


def test_what_no_moments_tell_apart_is_refused_if_it_differs():
    state = NAMED["same"](bare).init(PARAMS)
    assert_same_bits(from_optax(state, NAMED["same"](bare), PARAMS), state)
    tx = NAMED["reversed"](bare)
    message = (
        r"^`state` has several Inject\w+\.hyperparams\['step_size'\], 0\.1\d* and 0\.2\d*, and none"
        r" that can be told to be state\.inner_states\['a'\]\.inner_state\.hyperparams\['step_"
    )
    with pytest.raises(ValueError, match=message):
        from_optax(state, tx, PARAMS)
    equal = NAMED["same"](lambda group: bare("rest")).init(PARAMS)
    moved = jax.tree.leaves(from_optax(equal, tx, PARAMS))
    assert [float(x) for x in moved if x.dtype == jnp.float32] == [np.float32(0.2)] * 2


def test_a_group_without_moments_gives_none_of_its_numbers_to_one_that_has_some():
    made = {"embed": optax.adam(0.1), "rest": optax.inject_hyperparams(optax.sgd)(0.3)}
    ours = {"embed": injected(adam_jax, 9.0), "rest": optax.set_to_zero()}
    theirs, ours = (partition(groups, PLACES) for groups in (made, ours))
    moved = from_optax(theirs.init(PARAMS), ours, PARAMS)
    assert float(moved.inner_states["embed"].inner_state.hyperparams["learning_rate"]) == 9.0


def test_a_label_that_no_parameter_has_is_of_no_account():
    made = {"embed": injected(adam_jax, 9.0), "rest": injected(adam_jax, 9.0)}
    tx = partition(made | {"unused": injected(adam_jax, 9.0)}, PLACES)
    theirs = NAMED["same"](lambda group: injected(optax, 0.1))
    updates = updates_of(tx, from_optax(theirs.init(PARAMS), tx, PARAMS))
    np.testing.assert_allclose(jax.tree.leaves(updates), -0.1, rtol=1e-5)
