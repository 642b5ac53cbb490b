"""What a moved state may look like on either side: names, layouts, formats, chains; and faults."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_kind

import adam_jax
from adam_jax import storage
from adam_jax.interop.torch import from_torch, to_torch

PARAMS = {"dense": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "scale": jnp.ones(())}
NAMES = {"dense": {"w": "fc.weight", "b": "fc.bias"}, "scale": "scale"}
ORDER = ["scale", "fc.weight", "fc.bias"]  # PyTorch's
SHAPES = {"scale": (), "fc.weight": (3, 2), "fc.bias": (3,)}
GROUP = {"lr": 1e-3, "betas": (0.9, 0.999), "amsgrad": False, "params": [0, 1, 2]}


def transposed(name, x):
    return x.T if name in ("fc.weight", 1) else x


def torch_state(step=7.0, dtype=np.float32, **fields):
    """A state dict of numbers that are all different."""
    rng = np.random.default_rng(3)
    moments = {"exp_avg": rng.normal, "exp_avg_sq": rng.random} | fields
    entries = {
        position: {"step": np.array(step, np.float32)}
        | {f: np.asarray(draw(size=SHAPES[name]), dtype) for f, draw in moments.items()}
        for position, name in enumerate(ORDER)
    }
    return {"state": entries, "param_groups": [dict(GROUP)]}


def moved(state_dict=None, tx=None, params=PARAMS, names=None, layout=transposed):
    names = jax.tree.map(ORDER.index, NAMES) if names is None else names
    state_dict = torch_state() if state_dict is None else state_dict
    return from_torch(state_dict, tx or adam_jax.adam(1e-3), params, names, layout)


def assert_moved(state, state_dict):
    """The count and every moment, wherever they are."""
    (adam,) = (
        x
        for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(x, optax.ScaleByAdamState)
    )
    assert int(adam.count) == state_dict["state"][0]["step"]
    for tree, field in ((adam.mu, "exp_avg"), (adam.nu, "exp_avg_sq")):
        scale, weight, bias = (state_dict["state"][i][field] for i in range(3))
        np.testing.assert_array_equal(tree["dense"]["w"], weight.T)
        np.testing.assert_array_equal(tree["dense"]["b"], bias)
        np.testing.assert_array_equal(tree["scale"], scale)


# --- Names and layouts ----------------------------------------------------------------------------


def test_by_position():
    assert_moved(moved(), torch_state())


def test_by_name_where_the_optimizer_has_names():
    named = torch_state()
    named["param_groups"][0]["param_names"] = ORDER
    assert_moved(moved(named, names=NAMES), named)


def test_by_name_where_entries_are_named():
    """As in full state dicts of FSDP."""
    state_dict = torch_state()
    entries = {ORDER[position]: entry for position, entry in state_dict["state"].items()}
    group = {**GROUP, "params": ORDER}
    state = moved({"state": entries, "param_groups": [group]}, names=NAMES)
    assert_moved(state, state_dict)


def test_in_several_groups():
    state_dict = torch_state()
    state_dict["param_groups"] = [{**GROUP, "params": [2, 0]}, {**GROUP, "params": [1]}]
    assert_moved(moved(state_dict), state_dict)


def test_out_again():
    state_dict = torch_state()
    names = jax.tree.map(ORDER.index, NAMES)
    out = to_torch(moved(), PARAMS, names, {"state": {}, "param_groups": [GROUP]}, transposed)
    assert out["param_groups"] == [GROUP]
    assert out["param_groups"][0] is not GROUP
    for position, entry in state_dict["state"].items():
        assert out["state"][position].keys() == entry.keys()
        for field, x in entry.items():
            np.testing.assert_array_equal(out["state"][position][field], x)


def test_arrays_become_what_is_asked_for():
    out = to_torch(
        moved(),
        PARAMS,
        jax.tree.map(ORDER.index, NAMES),
        torch_state(),
        transposed,
        tensor=np.shape,
    )
    assert out["state"][1] == {"step": (), "exp_avg": (3, 2), "exp_avg_sq": (3, 2)}


def test_a_layout_that_does_not_fit_is_refused_on_the_way_out_too():
    names = jax.tree.map(ORDER.index, NAMES)
    with pytest.raises(ValueError, match=r"exp_avg of 1 has shape \(2, 3\), must have \(3, 2\)"):
        to_torch(moved(), PARAMS, names, torch_state())


def test_complex_parameters_are_refused():
    tx, params = adam_jax.adam(1e-3), {"w": jnp.ones(2, jnp.complex64)}
    _, state = tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match=r"mu of params\['w'\] must be floating, got complex64"):
        to_torch(state, params, {"w": 0}, torch_state())


def test_before_the_first_step_pytorch_has_no_state():
    tx = adam_jax.adam(1e-3)
    out = to_torch(tx.init(PARAMS), PARAMS, jax.tree.map(ORDER.index, NAMES), torch_state())
    assert out["state"] == {}


def test_a_bare_parameter():
    state_dict = torch_state()
    state_dict["state"] = {2: state_dict["state"][2]}
    state = from_torch(state_dict, adam_jax.adam(1e-3), jnp.ones(3), 2)
    np.testing.assert_array_equal(state[0].mu, state_dict["state"][2]["exp_avg"])


def test_sparse_adam_counts_with_integers():
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "maximize": False, "params": [0, 1, 2]}
    state_dict = torch_state() | {"param_groups": [group]}
    for entry in state_dict["state"].values():
        entry["step"] = 7
    state = moved(state_dict)
    assert_moved(state, state_dict)
    out = to_torch(state, PARAMS, jax.tree.map(ORDER.index, NAMES), state_dict, transposed)
    assert [entry["step"] for entry in out["state"].values()] == [7, 7, 7]
    assert {type(entry["step"]) for entry in out["state"].values()} == {int}


# --- What is around the optimizer -----------------------------------------------------------------

WHERE = {
    "Optax's own": lambda: optax.adam(1e-3),
    "a chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3)),
    "hyperparameters": lambda: adam_jax.with_hyperparameters(adam_jax.adam, learning_rate=1e-3),
    "Optax's hyperparameters": lambda: optax.inject_hyperparams(adam_jax.adam)(learning_rate=1e-3),
    "micro-steps": lambda: adam_jax.accumulate(adam_jax.adam(1e-3), 2),
    "no unstable step": lambda: adam_jax.skip_unstable(adam_jax.adam(1e-3)),
    "an average": lambda: optax.chain(adam_jax.adam(1e-3), adam_jax.average_params(0.9)),
}


@pytest.mark.parametrize("where", WHERE)
def test_the_state_is_found_in(where):
    tx = WHERE[where]()
    state = moved(tx=tx)
    assert_moved(state, torch_state())
    assert_same_kind(state, tx.init(PARAMS))
    names = jax.tree.map(ORDER.index, NAMES)
    out = to_torch(state, PARAMS, names, torch_state(), transposed)["state"]
    np.testing.assert_array_equal(out[1]["exp_avg"], torch_state()["state"][1]["exp_avg"])


def test_counts_of_the_rest_begin_anew():
    state = moved(tx=optax.chain(adam_jax.adam(1e-3), adam_jax.average_params(0.9)))
    assert int(state[1].count) == 0


class RowsState(NamedTuple):
    inner_state: optax.OptState
    last: optax.Params


def by_rows(tx):
    """Adam that also keeps the last step of each row."""

    def init(params):
        return RowsState(tx.init(params), {"w": jnp.zeros(2, jnp.int32), "b": None})

    return optax.GradientTransformation(init, tx.update)


def test_rows_are_up_to_the_step():
    state = moved(tx=by_rows(adam_jax.adam(1e-3)))
    assert_moved(state, torch_state())
    np.testing.assert_array_equal(state.last["w"], [7, 7])


def test_the_state_is_found_in_groups():
    labels = {"dense": {"w": "slow", "b": "fast"}, "scale": "frozen"}
    groups = {"slow": adam_jax.adam(1e-3), "fast": optax.adam(1e-2), "frozen": optax.set_to_zero()}
    state_dict = torch_state()
    del state_dict["state"][0]  # a parameter without gradients has no state there
    state = moved(state_dict, optax.partition(groups, labels))
    out = to_torch(state, PARAMS, jax.tree.map(ORDER.index, NAMES), state_dict, transposed)
    assert out["state"].keys() == {1, 2}
    for position, entry in out["state"].items():
        for field, x in entry.items():
            np.testing.assert_array_equal(x, state_dict["state"][position][field])


def test_a_moved_state_goes_where_its_parameter_is():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {
        **PARAMS,
        "dense": {**PARAMS["dense"], "w": jax.device_put(jnp.ones((2, 3)), sharding)},
    }
    state = moved(params=params)
    assert state[0].nu["dense"]["w"].sharding.is_equivalent_to(sharding, 2)


# --- Formats and dtypes ---------------------------------------------------------------------------


def test_moments_take_the_formats_of_the_optimizer():
    low = storage.eight_bit(min_size=6)
    tx = adam_jax.adam(1e-3, mu_dtype=jnp.bfloat16, nu_dtype=low)
    state, exact = moved(tx=tx), torch_state()["state"][1]
    assert_same_kind(state, tx.init(PARAMS))
    mu, nu = state[0].mu["dense"]["w"], state[0].nu["dense"]["w"]
    np.testing.assert_array_equal(mu, exact["exp_avg"].T.astype(jnp.bfloat16))
    np.testing.assert_allclose(nu.decode(), exact["exp_avg_sq"].T, atol=0.02)
    out = to_torch(state, PARAMS, jax.tree.map(ORDER.index, NAMES), torch_state(), transposed)
    np.testing.assert_array_equal(out["state"][1]["exp_avg_sq"], nu.decode().T)
    assert out["state"][1]["exp_avg"].dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_low_precision_is_widened(dtype):
    low = torch_state(dtype=dtype)
    state = moved(low)
    assert state[0].mu["dense"]["b"].dtype == np.float32
    np.testing.assert_array_equal(
        state[0].mu["dense"]["b"], low["state"][2]["exp_avg"].astype(np.float32)
    )


class Tensor:
    """What is asked of a tensor of PyTorch, here without it."""

    def __init__(self, x, dtype):
        self.x, self.dtype = x, f"torch.{dtype}"

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return Tensor(self.x.astype(np.float32), "float32")

    def numpy(self):
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_are_taken(dtype):
    exact = torch_state(dtype=dtype)
    tensors = jax.tree.map(
        lambda x: Tensor(x, x.dtype) if isinstance(x, np.ndarray) else x, torch_state(dtype=dtype)
    )
    assert_moved(moved(tensors), jax.tree.map(np.float32, exact["state"]) and exact)


# --- Faults ---------------------------------------------------------------------------------------


def without(key):
    return lambda s: s["state"][1].pop(key)


def with_(**changes):
    return lambda s: s["state"][1].update(changes)


def nan_at(field, value):
    return lambda s: s["state"][1][field].__setitem__((2, 1), value)


FAULTS = {
    "no state dict": (lambda s: s.pop("state"), "must have 'state' and 'param_groups', got"),
    "no step done": (lambda s: s["state"].clear(), "must hold the state of a parameter, got none"),
    "no mapping": (
        lambda s: s["state"].update({1: None}),
        "the state of 1 of a state dict must be",
    ),
    "NaN": (nan_at("exp_avg", np.nan), r"exp_avg of 1 must be finite, got nan at \[2, 1\]"),
    "infinite": (
        nan_at("exp_avg_sq", np.inf),
        r"exp_avg_sq of 1 must be finite, got inf at \[2, 1\]",
    ),
    "negative": (nan_at("exp_avg_sq", -1), r"exp_avg_sq of 1 must be >= 0, got -1.0 at \[2, 1\]"),
    "no step": (without("step"), "step of 1 must be an array, got None"),
    "another step": (with_(step=8.0), "all parameters must have one step, got 7 of 2, 8 of 1"),
    "too many steps": (
        lambda s: [entry.update(step=np.float32(2**40)) for entry in s["state"].values()],
        r"step of 2 must be a count, got .*: a whole number in \[1, 2\*\*31\)",
    ),
    "two mean squares": (
        with_(exp_inf=np.ones((3, 2), np.float32)),
        "1 has exp_avg_sq and exp_inf, of which Adams of PyTorch keep one",
    ),
    "half a step": (with_(step=7.5), "step of 1 must be a count, got"),
    "no mean": (without("exp_avg"), r"`tx` keeps mu of params\['dense'\]\['w'\], and none"),
    "of SGD": (with_(momentum_buffer=np.ones(3)), "1 has 'momentum_buffer', which no Adam"),
    "integers": (with_(exp_avg=np.ones((3, 2), int)), "exp_avg of 1 must be floating, got int64"),
    "a text": (with_(exp_avg="mean"), "exp_avg of 1 must be an array, got 'mean'"),
    "a shape": (
        with_(exp_avg=np.ones((3, 4), np.float32)),
        r"exp_avg of 1, as params\['dense'\]\['w'\], has shape \(4, 3\), must have \(2, 3\)",
    ),
    "float64": (
        with_(exp_avg=np.ones((3, 2))),
        r"exp_avg of 1 is float64, which mu of params\['dense'\]\['w'\] would round",
    ),
    "AMSGrad": (
        with_(max_exp_avg_sq=np.ones((3, 2), np.float32)),
        r"max_exp_avg_sq of 1 has no place: `tx` keeps no nu_max of params\['dense'\]\['w'\]",
    ),
    "more parameters": (
        lambda s: s["state"].update({3: s["state"][2]}),
        "`names` must have all parameters, got none for 3",
    ),
    "names too few": (
        lambda s: s["param_groups"][0].update(param_names=["w"]),
        "a group has 3 parameters and 1 names",
    ),
}


WRONG_KINDS = {
    "groups": (
        lambda s: s.update(param_groups=3),
        "'param_groups' must be a list of mappings, got 3",
    ),
    "positions": (
        lambda s: s["param_groups"][0].update(params=[[]]),
        r"'params' of a group must be a list of names or positions, got \[\[\]\]",
    ),
    "names": (
        lambda s: s["param_groups"][0].update(param_names=3),
        "'param_names' of a group must be a list of names or positions, got 3",
    ),
    "of bitsandbytes": (
        with_(__bnb_optimizer_quant_state__=3),
        "'__bnb_optimizer_quant_state__' must be a mapping, got 3",
    ),
}


def one_line(info):
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 250


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_state_dict_is_refused_in_one_line(fault):
    spoil, message = FAULTS[fault]
    state_dict = torch_state()
    spoil(state_dict)
    with pytest.raises((ValueError, TypeError), match=message) as info:
        moved(state_dict)
    one_line(info)


BAD_NAMES = {
    "unknown": (
        {**NAMES, "scale": "gain"},
        r"`names` has 'gain' for params\['scale'\]; the state dict has \['scale', 'fc.weight'",
    ),
    "twice": (
        {**NAMES, "scale": "fc.bias"},
        r"must differ, got 'fc.bias' for params\['dense'\]\['b'\] and params\['scale'\]",
    ),
    "missing": ({"dense": NAMES["dense"]}, "`names` must have the parameters' structure"),
    "no name": ({**NAMES, "scale": 1.5}, r"`names` for params\['scale'\] must be a name or a pos"),
    "exchanged": (
        {"dense": {"w": "fc.bias", "b": "fc.weight"}, "scale": "scale"},
        r"exp_avg of 'fc.weight', as params\['dense'\]\['b'\], has shape \(2, 3\), must have",
    ),
    "too far": ({**NAMES, "scale": 3}, r"`names` has 3 for params\['scale'\]"),
}


@pytest.mark.parametrize("fault", BAD_NAMES)
def test_wrong_names_are_refused_in_one_line(fault):
    names, message = BAD_NAMES[fault]
    named = torch_state()
    named["param_groups"][0]["param_names"] = ORDER
    with pytest.raises((ValueError, TypeError), match=message) as info:
        moved(named, names=names)
    one_line(info)


def test_names_where_there_are_only_positions():
    with pytest.raises(ValueError, match="the state dict has only positions, 3 of them"):
        moved(names=NAMES)


BAD_OPTIMIZERS = {
    "no Adam": (lambda: optax.sgd(0.1), "has no place: `tx` keeps no mu"),
    "two Adams": (
        lambda: optax.chain(adam_jax.adam(1e-3), adam_jax.adam(1e-3)),
        r"`tx` keeps mu of params\['dense'\]\['b'\] twice",
    ),
    "AMSGrad": (
        lambda: adam_jax.amsgrad(1e-3),
        r"keeps nu_max of params\['dense'\]\['b'\], and",
    ),
    "a third moment": (lambda: adam_jax.mars(1e-3), "`tx` keeps g of params"),
    "a flat state": (lambda: optax.flatten(adam_jax.adam(1e-3)), "the state's mu is not laid out"),
}


@pytest.mark.parametrize("fault", BAD_OPTIMIZERS)
def test_another_optimizer_is_refused_in_one_line(fault):
    make, message = BAD_OPTIMIZERS[fault]
    with pytest.raises(ValueError, match=message) as info:
        moved(tx=make())
    one_line(info)


def test_a_layout_keeps_the_dtype():
    with pytest.raises(TypeError, match="`layout` must keep the dtype of exp_avg of 2"):
        moved(layout=lambda name, x: x.astype(np.float64))


def test_changed_momenta_are_refused():
    state_dict = torch_state()
    state_dict["param_groups"][0] = {**GROUP, "momentum_decay": 4e-3}
    for entry in state_dict["state"].values():
        entry["mu_product"] = np.float32(0.5)
    with pytest.raises(ValueError, match=r"mu_product of 2 must be .* did they") as info:
        moved(state_dict)
    one_line(info)


@pytest.mark.parametrize("fault", WRONG_KINDS)
def test_what_is_of_a_wrong_kind_is_refused_in_one_line(fault):
    spoil, message = WRONG_KINDS[fault]
    state_dict = torch_state()
    spoil(state_dict)
    with pytest.raises(TypeError, match=message) as info:
        moved(state_dict)
    one_line(info)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, state: moved(params={**p, "scale": "f"}),
            r"params\['scale'\] must be an array or",
        ),
        (lambda p, state: moved(layout=3), "`layout` must be a function, got 3"),
        (
            lambda p, state: jax.jit(lambda q: moved(params=q))(p),
            r"params\['dense'\]\['b'\] must be",
        ),
        (lambda p, state: moved(params=jax.eval_shape(lambda: p)), ".* got ShapeDtypeStruct"),
        (
            lambda p, state: jax.jit(leaving)(state),
            r"state\[0\].count must be an array,",
        ),
        (lambda p, state: leaving(state, tensor=3), "`tensor` must be a function, got 3"),
    ],
)
def test_other_arguments_of_a_wrong_kind_are_too(call, message):
    with pytest.raises(TypeError, match=message) as info:
        call(PARAMS, moved())
    one_line(info)


def leaving(state, **arguments):
    like = {"state": {}, "param_groups": [GROUP]}
    return to_torch(state, PARAMS, jax.tree.map(ORDER.index, NAMES), like, **arguments)


def spoiled(state):
    return (state[0]._replace(nu={**state[0].nu, "scale": jnp.float32(jnp.nan)}), *state[1:])


BAD_LEAVING = {
    "NaN": (
        lambda state, like: (spoiled(state), like),
        r"nu of params\['scale'\] must be finite, got nan at \[0\]",
    ),
    "AMSGrad": (
        lambda state, like: (state, {**like, "param_groups": [{**GROUP, "amsgrad": True}]}),
        r"torch.optim.Adam keeps \['mu', 'nu', 'nu_max'\], the state \['mu', 'nu'\] of params",
    ),
    "SGD": (
        lambda state, like: (state, {**like, "param_groups": [{"lr": 1, "params": [0, 1, 2]}]}),
        r"`like` must be of an Adam of PyTorch, got groups with \['lr', 'params'\]",
    ),
    "no Adam": (lambda state, like: (state[1:], like), "`state` must hold moments and one count"),
    "fewer": (
        lambda state, like: (state, {**like, "param_groups": [{**GROUP, "params": [0, 1]}]}),
        r"`names` has 2 for params\['dense'\]\['b'\]",
    ),
}


@pytest.mark.parametrize("fault", BAD_LEAVING)
def test_what_cannot_leave_is_refused_in_one_line(fault):
    change, message = BAD_LEAVING[fault]
    state, like = change(moved(), {"state": {}, "param_groups": [GROUP]})
    with pytest.raises(ValueError, match=message) as info:
        to_torch(state, PARAMS, jax.tree.map(ORDER.index, NAMES), like, transposed)
    one_line(info)
