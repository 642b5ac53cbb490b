"""Where members, wrappers and decays meet what users really have, and what they get wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from checks import assert_same_kind

import adam_jax
from adam_jax import decay, like_torch
from adam_jax.rules.adam_mini import blocks_of_a_transformer

G = jnp.array([0.3, -2.0, 1e-3])


@pytest.mark.parametrize("wrap", [adam_jax.cautious, adam_jax.grams])
@pytest.mark.parametrize("inner", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9)])
def test_wrappers_keep_the_state_of_other_optimizers(wrap, inner):
    tx = wrap(inner)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = tx.init(params)
    assert_same_kind(state, inner.init(params))
    updates, new = tx.update(params, state, params)
    assert_same_kind(new, state)
    assert updates["w"].dtype == jnp.bfloat16


@pytest.mark.exhaustive
@pytest.mark.parametrize("value", [0.0, 1e-40])
@pytest.mark.parametrize("kind", [float, jnp.float32], ids=["static", "traced"])
def test_nadams_momentum_may_stand_still(value, kind):
    """Half of b1 at every step."""

    def steps(tx):
        state, found = tx.init(G), []
        for g in (G, -G, 2 * G):
            update, state = tx.update(g, state)
            found.append(update)
        return jnp.stack(found)

    found = steps(adam_jax.nadam(0.1, momentum_decay=kind(value)))
    tiny = steps(adam_jax.nadam(0.1, momentum_decay=1e-7))
    np.testing.assert_allclose(found, tiny, rtol=1e-5)
    rates = jnp.array([0.0, 4e-3, 1.0])
    lanes = jax.vmap(lambda rate: steps(adam_jax.nadam(0.1, momentum_decay=rate)))(rates)
    assert np.isfinite(lanes).all()


def test_adopts_first_step_is_none_also_with_a_tiny_eps():
    tx = adam_jax.adopt(1.0, eps=1e-20)
    g = jnp.array([3e38, 1e20, 1.0])
    updates, state = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(updates, 0)
    assert np.isfinite(state[0].mu).all()


DECAYS = {
    "number": 0.1,
    "l2": decay.l2(0.1),
    "after": decay.by_learning_rate(0.1, after=True),
    "schedule": decay.by_schedule(0.1, lambda _: 0.5),
    "independent": decay.independent(0.1),
    "proximal": decay.proximal(0.1),
    "in_place": decay.in_place(0.1),
}


@pytest.mark.parametrize("form", DECAYS)
@pytest.mark.parametrize("make", [adam_jax.adamw, adam_jax.lamb])
def test_what_has_no_gradient_stays(form, make):
    tx = make(0.1, weight_decay=DECAYS[form])
    params = {"w": G, "other": jnp.ones(2)}
    updates, _ = tx.update({"w": G, "other": None}, tx.init({"w": G, "other": None}), params)
    assert updates["other"] is None
    assert np.isfinite(updates["w"]).all()


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nadam", {"momentum_decay": 4e-3}),
        ("amsgrad", {}),
        ("radam", {}),
        ("ademamix", {}),
        ("adan", {}),
        ("lamb", {}),
        ("mars", {}),
        ("adam_mini", {}),
        ("lion", {}),
        ("adopt", {"static_args": ("clip_value_fn",)}),
    ],
)
def test_hyperparameters_are_injected(name, settings):
    static = ("seed", *settings.pop("static_args", ()))
    make = getattr(adam_jax, name)
    tx = optax.inject_hyperparams(make, static_args=static)(learning_rate=0.1, **settings)
    params, state = G, tx.init(G)
    traces = []

    @jax.jit
    def step(g, state):
        traces.append(1)
        return tx.update(g, state, params)

    for _ in range(2):
        found, state = step(G, state)
    plain = make(0.1, **settings)
    inner = plain.init(G)
    for _ in range(2):
        expected, inner = plain.update(G, inner, G)
    # A traced rate has lost digits: 1 - float32(0.9999) is 1.7e-4 off.
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert traces == [1]
    state.hyperparams["learning_rate"] = jnp.float32(0.2)
    step(G, state)
    assert traces == [1]


def test_a_moment_with_an_entry_a_block_starts_on_an_explicit_mesh():
    if not hasattr(jax.sharding, "AxisType"):
        pytest.skip("this JAX has no Explicit meshes")
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    tx = adam_jax.adam_mini(0.1)
    for spec in (("x", None), (None, "x")):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        p = jax.device_put(jnp.ones((4, 6)), sharding)
        state = tx.init(p)
        assert state[0].nu.shape == (1, 6)
        updates, _ = jax.jit(tx.update)(p, state, p)
        np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "shape", "blocks"),
    [
        (("attention", "query", "kernel"), (256, 4, 64), (1, 4, 1)),
        (("attention", "query", "bias"), (4, 64), (4, 1)),
        (("attention", "query", "kernel"), (256, 256), (1, 256)),
        (("attention", "value", "kernel"), (256, 4, 64), (1, 4, 64)),
        (("attention", "out", "kernel"), (4, 64, 256), (1, 1, 256)),
        (("self_attn", "k_proj", "w"), (256, 4, 64), (1, 4, 1)),
        (("attention_key_norm",), (64,), (1,)),
        (("monkey", "kernel"), (8, 4, 6), (1, 1, 6)),
        (("embedder", "embedding"), (1000, 64), (1000, 1)),
        (("pos_embed",), (1, 196, 768), (1, 196, 1)),
        (("tok_embeddings", "weight"), (1000, 64), (1000, 1)),
        (("patch_embeddings", "projection", "kernel"), (16, 16, 3, 768), (1, 1, 1, 768)),
        (("time_embedding", "linear_1", "kernel"), (320, 1280), (1, 1280)),
        (("key_encoder", "conv", "kernel"), (3, 3, 8, 16), (1, 1, 1, 16)),
        (("mlp", "kernel"), (64, 256), (1, 256)),
        (("norm", "scale"), (64,), (1,)),
        (("temperature",), (), ()),
        (("empty",), (0, 3), (0, 3)),
    ],
)
def test_blocks_of_a_transformer(path, shape, blocks):
    keys = tuple(map(jax.tree_util.DictKey, path))
    assert blocks_of_a_transformer(keys, jax.ShapeDtypeStruct(shape, jnp.float32)) == blocks


# By name a parameter's shape, that of its blocks, and that of some others.
SHARED = {
    "query/kernel": ((5, 4, 3), (1, 4, 1), (1, 1, 3)),
    "query/bias": ((4, 3), (4, 1), (1, 3)),
    "value/kernel": ((5, 4, 3), (1, 4, 3), (1, 4, 1)),
    "embedding": ((6, 3), (6, 1), (1, 3)),
    "mlp/kernel": ((5, 6), (1, 6), (5, 1)),
    "mlp/bias": ((6,), (1,), (6,)),
}


def test_each_head_has_a_step_of_its_own(x64):
    """Zhang et al. 2024: by the oracle, which takes other steps with other blocks."""
    rng = np.random.default_rng(0)
    g = {name: jnp.asarray(rng.standard_normal((3, *SHARED[name][0]))) for name in SHARED}
    tx = adam_jax.adam_mini(1.0)

    def step(state, g):
        updates, state = tx.update(g, state, g)
        return state, updates

    fresh = tx.init({name: x[0] for name, x in g.items()})
    state, updates = jax.lax.scan(step, fresh, g)
    for name, (_, blocks, others) in SHARED.items():
        expected, wrong = (oracle.adam_mini(g[name], blocks=x)[0] for x in (blocks, others))
        assert state[0].nu[name].shape == blocks
        np.testing.assert_allclose(-updates[name], expected, rtol=0, atol=1e-12, err_msg=name)
        assert np.abs(wrong - expected).max() > 0.1


def test_the_largest_mean_square_holds_in_eight_bits():
    """Rounded by chance, it would rise: a maximum takes what is above, and not what is below."""
    g = np.random.default_rng(0).standard_normal((1500, 2048)).astype(np.float32)

    def largest(**formats):
        tx = adam_jax.scale_by_amsgrad(**formats)
        step = lambda state, g: (tx.update(g, state)[1], None)  # noqa: E731
        return jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[0])(jnp.asarray(g)).nu_max

    exact = largest()
    stored = largest(nu_dtype=adam_jax.storage.eight_bit(min_size=0)).decode()
    assert np.mean(stored / exact) == pytest.approx(1, abs=0.02)


BAD = [
    (lambda: adam_jax.adamw(0.1, weight_decay=None), TypeError, "`weight_decay` must be a finite"),
    (lambda: adam_jax.adamw(0.1, weight_decay=decay.l2), TypeError, "`weight_decay` must be a fin"),
    (lambda: adam_jax.lift(adam_jax.adamw), TypeError, "`rule` must be a Rule, got <function"),
    (lambda: decay.by_schedule(0.1, "x"), TypeError, "`schedule` must be a finite number >= 0 or"),
    (lambda: decay.by_schedule(0.1, -1.0), ValueError, "`schedule` must be a finite number >= 0"),
    (lambda: decay.l2(-0.1), ValueError, "`weight_decay` must be a finite number >= 0"),
    (lambda: decay.by_learning_rate(0.1, after=1), TypeError, "`after` must be True or False"),
    (lambda: adam_jax.adopt(0.1, clip_value_fn=1.0), TypeError, "`clip_value_fn` must be a fun"),
    (lambda: adam_jax.adam_mini(0.1, blocks=(1, 4)), TypeError, "`blocks` must be a function"),
    (lambda: adam_jax.radam(0.1, threshold=3.0), ValueError, "`threshold` must be >= 4, got 3.0"),
    (lambda: adam_jax.ademamix(0.1, b3=1.0), ValueError, "`b3` must be in [0, 1) or a schedule"),
    (lambda: adam_jax.ademamix(0.1, warmup_steps=0), ValueError, "`warmup_steps` must be None or"),
    (
        lambda: adam_jax.ademamix(0.1, alpha=lambda _: 1.0, warmup_steps=9),
        ValueError,
        "`warmup_steps` needs numbers for `b3` and `alpha`",
    ),
    (lambda: adam_jax.nadam(0.1, momentum_decay=-1), ValueError, "`momentum_decay` must be None"),
    (
        lambda: adam_jax.nadam(0.1, nesterov=False, momentum_decay=1.0),
        ValueError,
        "`momentum_decay` needs `nesterov`",
    ),
    (lambda: adam_jax.amsgrad(0.1, eps_hat=True), ValueError, "`eps_hat` needs `correct_after"),
    (
        lambda: adam_jax.adam(0.1, eps_hat=True, bias_correction_nu=False),
        ValueError,
        "`eps_hat` needs `bias_correction_nu`",
    ),
    (
        lambda: adam_jax.amsgrad(0.1, bias_correction_nu=False, correct_after_max=True),
        ValueError,
        "`correct_after_max` needs `bias_correction_nu`",
    ),
    (lambda: adam_jax.scale_by_lion(mode=np.ones(2)), ValueError, "`mode` must be 'hard' or"),
    (lambda: adam_jax.cautious(0.1), TypeError, "`inner` must be an Optax transformation"),
    (lambda: adam_jax.grams(optax.sgd(1.0), descends=1), TypeError, "`descends` must be True"),
    (lambda: like_torch.Adam(betas=0.9), TypeError, "`betas` must be two decay rates, got 0.9"),
    (lambda: like_torch.Adam(betas=(0.9,)), TypeError, "`betas` must be two decay rates"),
    (lambda: like_torch.AdamW(weight_decay=False), TypeError, "`weight_decay` must be a finite"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (1, 4), (1.0, 3), None, 5, (0, 3)])
def test_blocks_that_do_not_fit_are_refused_by_the_leafs_path(shape):
    tx = adam_jax.adam_mini(0.1, blocks=lambda *_: shape)
    with pytest.raises(ValueError, match=r"^`blocks` must give a tuple .* params\['w'\]"):
        tx.init({"w": jnp.ones((2, 3))})
