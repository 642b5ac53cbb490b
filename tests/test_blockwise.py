"""One array in blocks of codes: against tables of the papers' construction, searched in float64.

The oracle knows tables and searches them; the package knows neither. Each check of it has a twin
that breaks the rule, and must fail.
"""

import math
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checks import assert_same_bits

from adam_jax import Moment, storage
from adam_jax.storage.dynamic import DynamicMap
from adam_jax.storage.float8 import E4M3
from adam_jax.storage.linear import Linear
from adam_jax.storage.random_bits import fold, random_bits

SIGNED, MAGNITUDE = Moment(), Moment(signed=False)
MAKE = {"eight_bit": storage.eight_bit, "four_bit": storage.four_bit, "float8": storage.float8}
BOOKS = [(kind, signed) for kind in MAKE for signed in (True, False)]
every_book = pytest.mark.parametrize(
    ("kind", "signed"), BOOKS, ids=[f"{k}-{'signed' if s else 'magnitude'}" for k, s in BOOKS]
)
every_format = pytest.mark.parametrize("kind", MAKE)
every_rounding = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])


@partial(jax.jit, static_argnums=(0, 1))
def store(form: Any, moment: Moment, x: Any, bits: Any = None) -> Any:
    """Blocks, and what they decode to."""
    blocks = form.encode(x, moment, bits)
    return blocks, blocks.decode()


# --- the oracle: tables, and a search in them ----------------------------------------------------


def dynamic(decades: int, bits: int, signed: bool) -> Any:
    """Dettmers' construction: middles of equal parts of each decade."""
    values = [0.0, 1.0]
    for i in range(decades):
        ends = np.linspace(0.1, 1, 2 ** (i + bits - 1 - decades + (not signed)) + 1)
        middles = (ends[:-1] + ends[1:]) / 2 * 10.0 ** (i - decades + 1)
        values += [*middles, *(-middles if signed else [])]
    return np.sort(values)


def e4m3(signed: bool) -> Any:
    """By pattern, up to the largest; of both signs all positive ones first."""
    positive = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return np.concatenate([positive, [np.nan], -positive]) if signed else positive**2


#: What each stored code stands for, NaN where none does.
TABLES = {
    ("eight_bit", True): dynamic(7, 8, True),
    ("eight_bit", False): dynamic(7, 8, False),
    ("four_bit", True): dynamic(3, 4, True),
    ("four_bit", False): (np.arange(16) + 1) / 16,
    ("float8", True): e4m3(True),
    ("float8", False): e4m3(False),
}


def table_of(kind: str, signed: bool) -> Any:
    """The same as float32 has it: what the code book's values are."""
    return TABLES[kind, signed].astype(np.float32).astype(np.float64)


def ascending(kind: str, signed: bool) -> Any:
    table = table_of(kind, signed)
    return np.unique(table[~np.isnan(table)])


def magnitudes(kind: str, signed: bool) -> Any:
    values = ascending(kind, signed)
    return values[values >= 0]


def nearest(y: Any, values: Any) -> Any:
    """Of ascending values the nearest to each float32, at a tie the one of smaller magnitude.

    Half the sum of two neighbours is exact in float64 where they are float32.
    """
    middles = (values[:-1] + values[1:]) / 2
    right = np.searchsorted(middles, y, side="right")
    return values[np.where(y > 0, np.searchsorted(middles, y, side="left"), right)]


def patterns(codes: Any) -> Any:
    """Stored codes as integers."""
    return np.asarray(codes).view(np.uint8).astype(int)


def book_of(kind: str, signed: bool) -> Any:
    form = MAKE[kind]()
    return form.signed if signed else form.magnitude


@cache
def encoder(kind: str, signed: bool) -> Callable[..., Any]:
    """From numbers up to the book's top to the values of their codes, in float64."""
    table, encode = table_of(kind, signed), jax.jit(book_of(kind, signed).encode)
    return lambda y, bits=None: table[patterns(encode(jnp.asarray(y), bits))]


def with_neighbours(x: Any) -> Any:
    x = np.float32(x)
    return np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])


@cache
def enumerated(kind: str, signed: bool, more: int = 1_000_000) -> Any:
    """Numbers where a rounding may go wrong, and as many others, as float32, up to the top."""
    values = magnitudes(kind, signed)
    top, rng = values[-1], np.random.default_rng(0)
    y = np.concatenate(
        [
            with_neighbours(values),
            with_neighbours((values[:-1] + values[1:]) / 2),
            with_neighbours(2.0 ** np.arange(-149, 18)),
            with_neighbours(10.0 ** np.arange(-45, 6)),
            np.float32(top) * rng.random(more // 2, np.float32),
            np.float32(top) * np.exp2(rng.uniform(-30, 0, more // 2)).astype(np.float32),
        ]
    )
    y = y[y <= np.float32(top)]
    return np.concatenate([y, -y]) if signed else y


# --- code books ----------------------------------------------------------------------------------


def test_the_dynamic_map_is_dettmers() -> None:
    """By the figures that its authors' code gives."""
    signed, magnitude = TABLES["eight_bit", True], TABLES["eight_bit", False]
    assert len(signed) == len(magnitude) == 256
    assert (signed[127], signed[255], magnitude[0], magnitude[255]) == (0, 1, 0, 1)
    np.testing.assert_allclose(signed[[0, 128, 254]], [-0.99296875, 5.5e-7, 0.99296875], rtol=1e-12)
    np.testing.assert_allclose(magnitude[[1, 254]], [3.25e-7, 0.996484375], rtol=1e-12)
    sums = [signed.sum(), magnitude.sum(), np.sum(signed**2), np.sum(magnitude**2)]
    np.testing.assert_allclose(sums, [1, 75.1052631, 48.595837526, 48.597451844], rtol=1e-10)
    four = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    np.testing.assert_allclose(
        TABLES["four_bit", True], [*(-x for x in reversed(four)), 0, *four, 1], rtol=1e-12
    )


def test_the_dynamic_maps_largest_error_grows_from_decade_to_decade() -> None:
    y = np.float32(10 ** np.linspace(-6, 0, 600_001)[:-1])
    error = np.abs(encoder("eight_bit", False)(y) - y) / y
    by_decade = error.reshape(6, -1).max(axis=1)[::-1]
    np.testing.assert_allclose(by_decade, [0.0328, 0.0616, 0.110, 0.180, 0.276, 0.466], rtol=5e-3)


@every_book
def test_values_are_the_tables_rounded_to_float32_once(kind: str, signed: bool) -> None:
    values = magnitudes(kind, signed)
    k = jnp.arange(len(values), dtype=jnp.int32)
    np.testing.assert_array_equal(np.float64(jax.jit(book_of(kind, signed).value)(k)), values)


@every_book
def test_codes_decode_to_the_table(kind: str, signed: bool) -> None:
    book, table = book_of(kind, signed), TABLES[kind, signed]
    codes = np.arange(len(table), dtype=np.uint8)
    stored = jnp.asarray(codes.view(ml_dtypes.float8_e4m3fn) if kind == "float8" else codes)
    real = ~np.isnan(table)
    decoded = np.asarray(jax.jit(book.decode)(stored))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded[real], table[real], rtol=1e-6)
    np.testing.assert_array_equal(decoded[table == 0], 0)
    assert book.bits == (4 if kind == "four_bit" else 8)
    assert book.top == np.nanmax(table)


@every_book
def test_a_number_that_is_a_code_never_moves(kind: str, signed: bool) -> None:
    """Nor to another code of the same value: codes survive a round trip bit for bit."""
    table, encode = table_of(kind, signed), jax.jit(book_of(kind, signed).encode)
    # Of float8's two zeros the negative one comes of tiny negative numbers only.
    codes = np.flatnonzero(~np.isnan(table) & ~((table == 0) & np.signbit(table)))
    y = jnp.asarray(table[codes], jnp.float32)
    np.testing.assert_array_equal(patterns(encode(y, None)), codes)
    for bits in (0, 0x12345678, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        drawn = encode(y, jnp.full(y.shape, bits, jnp.uint32))
        np.testing.assert_array_equal(patterns(drawn), codes)


# --- rounding to nearest -------------------------------------------------------------------------


def misses(encode: Callable[[Any], Any], kind: str, signed: bool, more: int = 10_000) -> int:
    """How many of the enumerated numbers do not get the nearest code."""
    y = enumerated(kind, signed, more)
    return int(np.sum(encode(y) != nearest(y.astype(np.float64), ascending(kind, signed))))


@pytest.mark.costly
@every_book
def test_nearest_is_the_nearest_code_for_every_enumerated_number(kind: str, signed: bool) -> None:
    assert misses(encoder(kind, signed), kind, signed, 1_000_000) == 0


@every_book
def test_the_oracle_agrees_with_looking_at_every_code(kind: str, signed: bool) -> None:
    values = ascending(kind, signed)
    y = enumerated(kind, signed, 2000).astype(np.float64)
    by_magnitude = values[np.argsort(np.abs(values), kind="stable")]
    distance = np.abs(y[:, None] - by_magnitude)  # of which argmin takes the first
    np.testing.assert_array_equal(nearest(y, values), by_magnitude[np.argmin(distance, axis=1)])


@every_book
def test_other_roundings_to_nearest_are_found_out(kind: str, signed: bool) -> None:
    """The twins: positions rounded as they are, ties away from zero, neighbours, an ulp."""
    book, table = book_of(kind, signed), table_of(kind, signed)
    encode = encoder(kind, signed)

    @jax.jit
    def rounded_position(y: Any) -> Any:
        k = jnp.floor(book.position(jnp.abs(y)) + 0.5).astype(jnp.int32)
        return book.pack(k, y < 0)

    def beyond(y: Any) -> Any:
        return np.clip(np.nextafter(y, np.copysign(np.float32(np.inf), y)), -book.top, book.top)

    values = ascending(kind, signed)
    assert misses(lambda y: table[patterns(rounded_position(jnp.asarray(y)))], kind, signed) > 0
    assert misses(lambda y: encode(beyond(y)), kind, signed) > 0
    assert misses(lambda y: values[np.searchsorted(values, encode(y)) - 1], kind, signed) > 9000
    assert misses(lambda y: nearest(1.001 * y, values), kind, signed) > 10


@every_book
def test_a_sign_is_never_lost_to_the_other(kind: str, signed: bool) -> None:
    y = enumerated(kind, signed, 10_000)
    bits = np.random.default_rng(1).integers(2**32, size=y.shape, dtype=np.uint32)
    for draw in (None, jnp.asarray(bits)):
        assert np.all(encoder(kind, signed)(y, draw) * y >= 0)


# --- arithmetic and no search --------------------------------------------------------------------


def searches(function: Callable[..., Any], *args: Any) -> set[str]:
    """What a table look-up or a search would leave in the program, lowered and compiled."""
    lowered = jax.jit(function).lower(*args)
    text = lowered.as_text() + lowered.compile().as_text()
    return set(re.findall(r"\b(?:gather|dynamic[-_]gather|dynamic[-_]slice|sort|while)\b", text))


@pytest.mark.costly
@every_book
@every_rounding
def test_there_is_no_search_in_the_program(kind: str, signed: bool, rounding: str) -> None:
    form, moment = MAKE[kind](min_size=0, rounding=rounding), Moment(signed)
    x = jnp.ones((3, 300))
    bits = jnp.ones(x.shape, jnp.uint32) if form.stochastic else None
    assert searches(lambda x, bits: form.encode(x, moment, bits), x, bits) == set()
    if form.stochastic:
        assert searches(lambda blocks: blocks.decode(), store(form, moment, x, bits)[0]) == set()


def test_a_search_in_the_program_is_found() -> None:
    table = jnp.asarray(TABLES["eight_bit", True], jnp.float32)
    y = jnp.ones((3, 1000))
    assert "gather" in searches(lambda y: table[y.astype(jnp.uint8)], y)
    assert searches(lambda y: jnp.searchsorted(table, y), y)
    assert searches(jnp.sort, y) == {"sort"}
    assert searches(lambda y, i: jax.lax.dynamic_slice(y, (i, 0), (1, 1)), y, 1)


# --- rounding by chance --------------------------------------------------------------------------

CHANCES = 2**15  # as many as rounding looks at, the upper bits of a word
ALL_BITS = np.arange(CHANCES, dtype=np.uint32) << np.uint32(17)


def some(kind: str, signed: bool) -> Any:
    """Numbers of every size, from the smallest positive code on."""
    values = magnitudes(kind, signed)
    first, top = values[values > 0][0], values[-1]
    rng = np.random.default_rng(2)
    # The code below 1 is the largest negative one of a dynamic map: there is no room for -1.
    y = np.float32(np.concatenate([rng.uniform(first, top, 40), np.geomspace(first, top, 41)[:-1]]))
    return np.concatenate([y, -y[y <= -ascending(kind, signed)[0]]]) if signed else y


def around(y: Any, kind: str, signed: bool) -> tuple[Any, Any]:
    """The values below and above each number; both itself where it is one."""
    values = ascending(kind, signed)
    above = np.searchsorted(values, y, side="left")
    below = np.searchsorted(values, y, side="right") - 1
    return values[np.clip(below, 0, None)], values[np.clip(above, None, len(values) - 1)]


def drawn(kind: str, signed: bool, y: Any) -> Any:
    """What each number becomes by each chance there is."""
    bits = np.broadcast_to(ALL_BITS, (len(y), CHANCES))
    return encoder(kind, signed)(np.broadcast_to(y[:, None], bits.shape), jnp.asarray(bits))


@every_book
def test_chance_takes_one_of_two_neighbours_and_is_right_on_average(
    kind: str, signed: bool
) -> None:
    """Over all chances, exactly: to a unit of what they are counted in, of the way between."""
    y = some(kind, signed)
    found = drawn(kind, signed, y)
    below, above = around(y.astype(np.float64), kind, signed)
    assert np.all((found == below[:, None]) | (found == above[:, None]))
    gap = np.where(above > below, above - below, 1)
    assert np.max(np.abs(found.mean(axis=1) - y) / gap) < 1.5 / CHANCES


def z_score(found: Any, y: float, kind: str, signed: bool) -> float:
    """How many standard errors the mean of many draws is off."""
    (below,), (above,) = around(np.array([y]), kind, signed)
    spread = math.sqrt((y - below) * (above - y) / found.size)
    return abs(float(found.mean()) - y) / spread


@every_book
def test_an_arrays_draws_are_right_on_average(kind: str, signed: bool) -> None:
    """By the bits that a step has: equal elements round apart, and their mean is the number."""
    encode = encoder(kind, signed)
    scores = []
    for i, y in enumerate(some(kind, signed)[:10]):
        bits = random_bits(fold(0, 1, i), (100_000,))
        scores.append(z_score(encode(np.full(100_000, y), bits), float(y), kind, signed))
    assert max(scores) < 4
    assert np.mean(scores) < 1.5  # of a normal deviate's size: 0.8, give or take 0.2


def test_float8s_magnitudes_are_right_in_themselves_and_not_in_their_roots() -> None:
    """The twin rounds the root by chance: its square is too large on average."""
    bits = random_bits(fold(0, 1), (100_000,))
    square, root = encoder("float8", False), encoder("float8", True)
    right, twin = [], []
    for y in some("float8", False)[:20]:
        for scores, found in (
            (right, square(np.full(100_000, y), bits)),
            (twin, root(np.full(100_000, np.sqrt(y)), bits) ** 2),
        ):
            scores.append(z_score(found, float(y), "float8", False))
    assert np.mean(right) < 1.5
    assert np.mean(twin) > 3


def test_nearest_is_wrong_on_average() -> None:
    for kind, signed in BOOKS:
        y = some(kind, signed)
        below, above = around(y.astype(np.float64), kind, signed)
        gap = np.where(above > below, above - below, 1)
        assert np.max(np.abs(encoder(kind, signed)(y) - y) / gap) > 0.3


@every_format
def test_no_magnitude_becomes_zero_by_chance(kind: str) -> None:
    """It would divide by ``eps`` alone. Signed moments may: a mean of 0 is harmless."""
    values = magnitudes(kind, False) / magnitudes(kind, False)[-1]
    first = values[values > 0][0]
    small = first * np.array([*(10.0 ** np.arange(-25, 0)), 0.5, 0.99])
    x = jnp.asarray([1, *small, 0], jnp.float32)
    never, always = jnp.zeros(x.shape, jnp.uint32), jnp.full(x.shape, 0xFFFFFFFF, jnp.uint32)
    for bits in (never, always):
        _, decoded = store(MAKE[kind](64, min_size=0), MAGNITUDE, x, bits)
        np.testing.assert_allclose(decoded[:-1], [1, *np.full(len(small), first)], rtol=1e-6)
        np.testing.assert_allclose(decoded[-1], values[0], rtol=1e-6)
    if kind == "eight_bit":  # and to nearest most of them do
        _, decoded = store(MAKE[kind](64, rounding="nearest", min_size=0), MAGNITUDE, x)
        assert np.sum(decoded == 0) == len(small)
        _, decoded = store(MAKE[kind](64, min_size=0), SIGNED, x, never)
        assert np.all(decoded[1:] == 0)


# --- blocks --------------------------------------------------------------------------------------

#: Shapes, and the axis that blocks run along.
SHAPES: dict[tuple[int, ...], int | None] = {
    (): None,
    (1,): 0,
    (1, 1): 1,
    (7,): 0,
    (10_007,): 0,
    (10_000, 1): 0,
    (3, 257): 1,
    (0, 3): 1,
    (3, 0): 1,
    (2, 1, 300, 1, 1): 2,
    (2, 3, 1000): 2,
    (1_000_003,): 0,
}


def replaced(shape: tuple[int, ...], axis: int | None, size: int) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], size, *shape[axis + 1 :])


def stored_by_oracle(x: Any, axis: int | None, kind: str, signed: bool, size: int) -> Any:
    """Values and scales of an array's blocks, one by one, in NumPy; each with the array's axes."""
    rows = np.moveaxis(x, axis, -1) if axis is not None else x.reshape(1)
    table, top = ascending(kind, signed), magnitudes(kind, signed)[-1]
    values, scales = [], []
    for start in range(0, rows.shape[-1], size):
        block = rows[..., start : start + size]
        scale = np.max(np.abs(block), axis=-1, keepdims=True) * np.float32(1 / top)
        inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, 1), 0)
        values.append(nearest((block * inverse.astype(np.float32)).astype(np.float64), table))
        scales.append(scale)
    if not values:
        return np.zeros(x.shape), np.zeros(x.shape, np.float32)
    if axis is None:
        return values[0].reshape(()), scales[0].reshape(())
    return tuple(np.moveaxis(np.concatenate(part, axis=-1), -1, axis) for part in (values, scales))


def unpacked(blocks: Any, axis: int | None, kind: str) -> Any:
    """Codes, one an element, with the array's axes: four-bit ones lower half first."""
    codes = patterns(blocks.codes)
    if kind != "four_bit" or not codes.size:
        return codes
    if axis is None:
        return codes & 15
    both = np.stack([codes & 15, codes >> 4], axis=axis + 1)
    both = both.reshape(replaced(codes.shape, axis, 2 * codes.shape[axis]))
    last = np.take(both, range(blocks.shape[axis], both.shape[axis]), axis=axis)
    assert np.all(last == 0)  # what fills the last byte
    return np.take(both, range(blocks.shape[axis]), axis=axis)


#: Every shape in bytes and in half bytes; a few where only the code book differs.
LAYOUTS = [
    (kind, signed, shape)
    for kind, signed in BOOKS
    for shape in SHAPES
    if (signed and kind != "float8") or shape in {(), (3, 257)}
]


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "signed", "shape"), LAYOUTS, ids=str)
def test_blocks_are_those_of_the_oracle(kind: str, signed: bool, shape: tuple[int, ...]) -> None:
    form, axis = MAKE[kind](rounding="nearest", min_size=0), SHAPES[shape]
    x = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    x = np.asarray(x if signed else x * x)
    blocks, decoded = store(form, Moment(signed), jnp.asarray(x))

    length = 1 if axis is None else shape[axis]
    count = -(-length // form.block_size)
    assert blocks.scales.shape == replaced(shape, axis, count)
    assert blocks.codes.shape == replaced(
        shape, axis, -(-length // 2) if kind == "four_bit" else length
    )
    assert blocks.codes.dtype == (jnp.float8_e4m3fn if kind == "float8" else jnp.uint8)
    assert blocks.scales.dtype == jnp.float32
    assert blocks.shape == shape

    values, scales = stored_by_oracle(x, axis, kind, signed, form.block_size)
    np.testing.assert_array_equal(blocks.scales, scales.reshape(blocks.scales.shape))
    found = table_of(kind, signed)[unpacked(blocks, axis, kind)]
    np.testing.assert_array_equal(found.reshape(shape), values)

    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    each = np.repeat(scales, form.block_size, axis=axis) if axis is not None else scales
    each = np.take(each, range(length), axis=axis) if axis is not None else each
    np.testing.assert_allclose(decoded, (values * each).reshape(shape), rtol=2e-6)


@pytest.mark.costly
@every_format
@pytest.mark.parametrize("block_size", [2, 6, 100])
def test_blocks_of_any_even_size(kind: str, block_size: int) -> None:
    form = MAKE[kind](block_size, rounding="nearest", min_size=0)
    x = np.random.default_rng(4).standard_normal((2, 295), dtype=np.float32)
    blocks, _ = store(form, SIGNED, jnp.asarray(x))
    values, scales = stored_by_oracle(x, 1, kind, True, block_size)
    np.testing.assert_array_equal(blocks.scales, scales)
    np.testing.assert_array_equal(table_of(kind, True)[unpacked(blocks, 1, kind)], values)


@pytest.mark.costly
@every_book
def test_blocks_know_nothing_of_each_other(kind: str, signed: bool) -> None:
    """A huge entry, or one that is not finite, changes its block, and no other in its row or out.

    What is not finite makes all of its block so: it is never hidden.
    """
    form = MAKE[kind](64, min_size=0)
    x = np.random.default_rng(5).uniform(0.1, 1, (3, 300)).astype(np.float32)
    bits = random_bits(fold(0), x.shape)
    before = np.asarray(store(form, Moment(signed), jnp.asarray(x), bits)[1])
    for row, column in ((0, 0), (1, 63), (1, 64), (2, 299)):
        own = np.zeros(x.shape, bool)
        own[row, column // 64 * 64 : column // 64 * 64 + 64] = True
        for bad in (1e30, np.nan, np.inf, -np.inf):
            other = x.copy()
            other[row, column] = bad
            after = np.asarray(store(form, Moment(signed), jnp.asarray(other), bits)[1])
            np.testing.assert_array_equal(after[~own], before[~own])
            if np.isfinite(bad):
                assert not np.array_equal(after[own], before[own])
                assert np.all(np.isfinite(after))
            else:
                assert not np.any(np.isfinite(after[own]))


@pytest.mark.costly
@every_book
def test_the_last_short_block_has_its_own_scale(kind: str, signed: bool) -> None:
    form = MAKE[kind](64, rounding="nearest", min_size=0)
    x = np.ones(70, np.float32)
    x[64:] = 1e-3
    blocks, decoded = store(form, Moment(signed), jnp.asarray(x))
    np.testing.assert_allclose(blocks.scales * book_of(kind, signed).top, [1, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(decoded, x, rtol=1e-6)


@every_book
def test_a_block_of_zeros_has_scale_zero_and_decodes_to_zero(kind: str, signed: bool) -> None:
    """Also on the map without a zero."""
    form = MAKE[kind](4, min_size=0)
    x = jnp.asarray([0, 0, 0, 0, 1, 1, 1, 1, 0, 0], jnp.float32)
    blocks, decoded = store(form, Moment(signed), x, jnp.full(10, 0xFFFFFFFF, jnp.uint32))
    assert blocks.scales[0] == blocks.scales[2] == 0
    np.testing.assert_allclose(decoded, x, rtol=1e-6)


#: The largest distance of two codes, relative to the largest.
GAPS = {
    kind: max(np.diff(ascending(kind, s)).max() / magnitudes(kind, s)[-1] for s in (True, False))
    for kind in MAKE
}


@pytest.mark.costly
@every_book
def test_every_magnitude_is_stored(kind: str, signed: bool) -> None:
    """From subnormal numbers to the largest: finite, and right to the format's precision.

    Near the smallest float32 there is no scale left: what is stored is small too.
    """
    form = MAKE[kind](4, min_size=0)
    largest = np.finfo(np.float32).max
    sizes = np.float32([1e-45, 1e-40, *(10.0 ** np.arange(-38, 39)), 8.6e37, 1.8e38, 3e38, largest])
    x = sizes[:, None] * np.float32([1, 0.99, 0.3, 0])
    bits = random_bits(fold(0), x.shape)
    found = np.asarray(store(form, Moment(signed), jnp.asarray(x), bits)[1])
    assert np.all(np.isfinite(found))
    error = np.max(np.abs(found.astype(np.float64) - x) / sizes[:, None].astype(np.float64), axis=1)
    lost = sizes < 1e-28
    assert np.all(error[~lost] <= GAPS[kind]), sizes[~lost][error[~lost] > GAPS[kind]]
    assert np.all(found[lost] <= 2e-28)


def test_numbers_over_float32_are_held(x64: None) -> None:
    for kind, signed in BOOKS[1::2]:
        form = MAKE[kind](4, rounding="nearest", min_size=0)
        x = jnp.asarray([1e300, 1.0, 1e-300, 0.5], jnp.float64)
        _, found = store(form, Moment(signed), x)
        assert found.dtype == np.float32
        assert np.all(np.isfinite(found))
        np.testing.assert_allclose(found[0], np.finfo(np.float32).max, rtol=1e-6)


def test_four_bit_codes_lie_two_in_a_byte() -> None:
    """All 256 bytes there are, the first code in the lower half; and what fills the last byte."""
    for signed in (True, False):
        form = storage.four_bit(512, rounding="nearest", min_size=0)
        table, every = table_of("four_bit", signed), np.arange(256)
        x = np.stack([table[every % 16], table[every // 16]], axis=1).ravel()
        blocks, decoded = store(form, Moment(signed), jnp.asarray(x, jnp.float32))
        np.testing.assert_array_equal(blocks.codes, every)
        np.testing.assert_allclose(decoded, x, rtol=1e-6)
        odd, decoded = store(form, Moment(signed), jnp.asarray(x[:-1], jnp.float32))
        np.testing.assert_array_equal(odd.codes, [*range(255), 15])
        np.testing.assert_allclose(decoded, x[:-1], rtol=1e-6)


def test_bytes_are_as_they_were() -> None:
    """States outlive a release: these are its codes and scales, written out by hand."""
    x = jnp.asarray([1.0, -1.0, 0.5, -2e-3, 0.0, 4e-7, 4.0, -0.03], jnp.float32)
    expected = {
        ("eight_bit", True): [255, 0, 219, 110, 127, 128, 255, 100],
        ("eight_bit", False): [255, 255, 183, 34, 0, 1, 255, 54],
        ("four_bit", True): [0x0F, 0x7C, 0x77, 0x6F],
        ("four_bit", False): [0xFF, 0x07, 0x00, 0x0F],
        ("float8", True): [126, 254, 118, 182, 0, 0, 126, 197],
        ("float8", False): [126, 126, 122, 90, 0, 41, 126, 98],
    }
    for (kind, signed), codes in expected.items():
        form = MAKE[kind](6, rounding="nearest", min_size=0)
        blocks, _ = store(form, Moment(signed), x if signed else jnp.abs(x))
        assert patterns(blocks.codes).tolist() == codes, (kind, signed)
        top = book_of(kind, signed).top
        np.testing.assert_allclose(blocks.scales, np.float32([1 / top, 4 / top]), rtol=1e-7)


@pytest.mark.exhaustive
@every_book
def test_eager_jitted_and_vmapped_give_the_same_bits(kind: str, signed: bool) -> None:
    form, moment = MAKE[kind](64, min_size=0), Moment(signed)
    x = np.random.default_rng(6).standard_normal((4, 5, 301), dtype=np.float32)
    x *= np.float32(10.0) ** np.arange(-8, 12, dtype=np.float32).reshape(4, 5, 1)
    x = jnp.asarray(x if signed else x * x)
    bits = random_bits(fold(0), x.shape)
    blocks, decoded = store(form, moment, x, bits)

    assert_same_bits(jax.jit(lambda blocks: blocks.decode())(blocks), decoded)
    one = partial(store, form, moment)
    assert_same_bits(jax.vmap(one)(x, bits), (blocks, decoded))
    assert_same_bits(jax.jit(jax.vmap(jax.vmap(one)))(x, bits), (blocks, decoded))
    if (kind, signed) not in {("eight_bit", True), ("four_bit", False)}:
        return  # what is left is alike, and slow, for each operation is compiled by itself
    eager = form.encode(x, moment, bits)
    assert_same_bits(eager, blocks)
    # Where each operation is a program of its own, a multiplication and an addition round twice.
    np.testing.assert_allclose(eager.decode(), decoded, rtol=1e-6)


def test_blocks_say_what_they_are() -> None:
    x = jnp.ones((3, 70))

    def stored(form: Any) -> Any:
        return jax.eval_shape(partial(store, form, SIGNED), x)[0]

    form = storage.four_bit(64, min_size=0)
    assert str(stored(form)) == str(form) == "four_bit(block_size=64)"
    assert isinstance(stored(form), storage.Blocks)
    assert stored(form).shape == x.shape
    assert form.holds(stored(form))
    for other in (storage.four_bit(128), storage.eight_bit(64), storage.float8(64)):
        assert not form.holds(stored(other))
    assert not form.holds(x)


EVERY_BOOK = [
    DynamicMap(7, signed=True),
    DynamicMap(7, signed=False),
    DynamicMap(3, signed=True),
    Linear(),
    E4M3(signed=True),
    E4M3(signed=False),
]


@pytest.mark.costly
@pytest.mark.parametrize("book", EVERY_BOOK, ids=str)
@pytest.mark.parametrize("bits", [None, 0, 2**32 - 1])
def test_a_little_over_the_top_is_the_top(book, bits):
    """As of a device whose inverse is not rounded correctly; it must not wrap around."""
    over = np.nextafter(np.nextafter(np.float32(book.top), np.float32(np.inf)), np.float32(np.inf))
    y = jnp.array([over, -over] if book.signed else [over])
    word = None if bits is None else jnp.full(y.shape, bits, jnp.uint32)
    decoded = np.asarray(book.decode(book.encode(y, word)))
    assert decoded[0] == pytest.approx(book.top)
    assert (decoded[1:] < -0.88 * book.top).all()


def test_books_that_cannot_be_used_are_refused():
    signed, magnitude = DynamicMap(7, signed=True), DynamicMap(7, signed=False)
    with pytest.raises(ValueError, match="`signed` must be a code book of two signs"):
        storage.Blockwise("swapped", magnitude, signed)
    with pytest.raises(TypeError, match="of 4 or 8 bits"):
        storage.Blockwise("six bits", DynamicMap(5, signed=True), magnitude)
