"""8-bit states of bitsandbytes are decoded as it decodes them: against a state of its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.traces import FOLDER

import adam_jax
from adam_jax import storage
from adam_jax.interop.torch import from_torch
from adam_jax.storage.dynamic import DynamicMap

with np.load(FOLDER / "bitsandbytes.npz") as _file:
    GOLDEN = dict(_file)
ABOUT = json.loads(str(GOLDEN.pop("about")))
NAMES = {"whole": 0, "ragged": 1, "row": 2, "small": 3}
PARAMS = {name: jnp.zeros(GOLDEN[f"{i}/state1"].shape) for name, i in NAMES.items()}
QUANTISED = ("whole", "ragged", "row")
EIGHT = storage.eight_bit(min_size=512)


decoded = jax.jit(lambda stored: stored.decode())


def state_dict(nested=True, **changes):
    """What bitsandbytes had; entries of newer releases have a dict in them."""
    entries = {}
    for i in NAMES.values():
        parts = {k.partition("/")[2]: x for k, x in GOLDEN.items() if k.startswith(f"{i}/")}
        parts = {k: x for k, x in parts.items() if not k.startswith("decoded")}
        parts |= changes if i == 0 else {}
        parts = {k: x for k, x in parts.items() if x is not None}
        inner = {ABOUT["inner"][0]: parts} if nested else parts
        entries[i] = {"step": ABOUT["step"], **inner}
    return {"state": entries, "param_groups": ABOUT["param_groups"]}


def moved(moving=None, **formats):
    tx = adam_jax.adam(1e-3, **formats)
    return from_torch(moving or state_dict(), tx, PARAMS, NAMES)[0]


@pytest.mark.parametrize("nested", [True, False])
def test_moments_are_its_own_bit_for_bit(nested):
    state = moved(state_dict(nested))
    assert state.count == ABOUT["step"]
    for tree, number in ((state.mu, 1), (state.nu, 2)):
        for name in QUANTISED:
            decoded = GOLDEN[f"{NAMES[name]}/decoded{number}"]
            assert np.asarray(tree[name]).tobytes() == decoded.tobytes()
        np.testing.assert_array_equal(tree["small"], GOLDEN[f"3/state{number}"])


def test_other_scales_would_be_found():
    spoiled = GOLDEN["0/absmax1"][::-1].copy()
    other = moved(state_dict(absmax1=spoiled)).mu["whole"]
    assert np.asarray(other).tobytes() != GOLDEN["0/decoded1"].tobytes()


@pytest.mark.parametrize("number", [1, 2])
def test_its_code_book_is_ours(number):
    codes = jnp.arange(256, dtype=jnp.uint8)
    ours = np.asarray(jax.jit(DynamicMap(7, signed=number == 1).decode)(codes))
    np.testing.assert_allclose(ours, GOLDEN[f"0/qmap{number}"], rtol=1e-6)
    assert np.abs(np.diff(ours)).min() > 1e-7  # neighbours are farther apart


@pytest.fixture(scope="module")
def eight_bit():
    return moved(mu_dtype=EIGHT, nu_dtype=EIGHT)


@pytest.mark.costly
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", ["whole", "row"])
def test_where_blocks_are_the_same_codes_keep_their_bits(eight_bit, name, number):
    stored, i = (eight_bit.mu, eight_bit.nu)[number - 1][name], NAMES[name]
    np.testing.assert_array_equal(stored.codes, GOLDEN[f"{i}/state{number}"])
    np.testing.assert_array_equal(stored.scales.ravel(), GOLDEN[f"{i}/absmax{number}"])
    exact = GOLDEN[f"{i}/decoded{number}"]
    np.testing.assert_allclose(decoded(stored), exact, rtol=1e-6)


def test_where_they_are_not_they_are_rounded_anew(eight_bit):
    """Rows of 300 have blocks of their own here, and there not."""
    stored, exact = eight_bit.mu["ragged"], GOLDEN["1/decoded1"]
    assert stored.scales.shape == (3, 2)
    assert not np.array_equal(stored.codes, GOLDEN["1/state1"])
    np.testing.assert_allclose(decoded(stored), exact, atol=0.01 * np.abs(exact).max())


def test_a_layout_moves_what_is_decoded():
    params = jax.tree.map(lambda x: x.T, PARAMS)
    tx = adam_jax.adam(1e-3)
    state = from_torch(state_dict(), tx, params, NAMES, layout=lambda name, x: x.T)[0]
    np.testing.assert_array_equal(state.mu["ragged"].T, GOLDEN["1/decoded1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qmap1": None}, "state1 of 0 must come with a float32 qmap of blocks, got nothing"),
        (
            {"absmax2": np.ones(3, np.float32)},
            "1024 codes, whose blocks of 256 need 4 scales, got 3",
        ),
        ({"absmax1": np.ones(4)}, r"must come with a float32 absmax of blocks, got float64\[4\]"),
        ({"absmax1": np.full(4, np.nan, np.float32)}, "exp_avg of 0 must be finite, got nan"),
        ({"max1": np.ones(1)}, "0 has 'max1', which no Adam of PyTorch keeps"),
        ({"state1": np.zeros((2, 4, 256), np.uint8), "absmax1": np.ones(8, np.float32)}, "shape"),
    ],
)
def test_bad_parts_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as info:
        moved(state_dict(**changes))
    assert "\n" not in str(info.value)
