"""What names tell of leaves, in the trees of real libraries, and the masks made of it."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from training import assert_close, gradients

import adam_jax
from adam_jax.leaves import (
    decay_mask,
    is_bias,
    is_embedding,
    is_norm,
    matrices_only,
    path_name,
)
from adam_jax.race.models import MODELS

KINDS = {"bias": is_bias, "norm": is_norm, "embedding": is_embedding}


def kinds(tree):
    """The names of each kind, and of what is of none; numbers inside are not told apart."""
    found = {kind: [] for kind in (*KINDS, "none")}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = re.sub(r"(?<=/)\d+(?=/)", "*", path_name(path))
        own = [kind for kind, holds in KINDS.items() if holds(path, leaf)] or ["none"]
        for kind in own:
            if name not in found[kind]:
                found[kind].append(name)
    return {kind: " ".join(names) for kind, names in found.items()}


def named(name):
    """A path with this name."""
    return tuple(map(jax.tree_util.DictKey, name.split("/")))


@pytest.mark.parametrize("model", ["gpt2-small", "gpt2-xl"])
def test_gpt2(model):
    norm = "blocks/*/ln_1/bias blocks/*/ln_1/scale blocks/*/ln_2/bias blocks/*/ln_2/scale"
    assert kinds(MODELS[model]()) == {
        "bias": "blocks/*/attn/c_attn/b blocks/*/attn/c_proj/b blocks/*/ln_1/bias"
        " blocks/*/ln_2/bias blocks/*/mlp/c_fc/b blocks/*/mlp/c_proj/b ln_f/bias",
        "norm": f"{norm} ln_f/bias ln_f/scale",
        "embedding": "wpe wte",
        "none": "blocks/*/attn/c_attn/w blocks/*/attn/c_proj/w blocks/*/mlp/c_fc/w"
        " blocks/*/mlp/c_proj/w",
    }


def test_llama3():
    assert kinds(MODELS["llama3-8b"]()) == {
        "bias": "",
        "norm": "layers/*/attention_norm layers/*/ffn_norm norm",
        "embedding": "tok_embeddings",
        "none": "layers/*/attention/wk layers/*/attention/wo layers/*/attention/wq"
        " layers/*/attention/wv layers/*/feed_forward/w1 layers/*/feed_forward/w2"
        " layers/*/feed_forward/w3 output",
    }


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx", reason="Flax wants a recent JAX")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(5, 4, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs)])
            self.attention = nnx.MultiHeadAttention(
                2, 4, rngs=rngs, decode=False, normalize_qk=True
            )
            self.bn = nnx.BatchNorm(4, rngs=rngs)
            self.out = nnx.Linear(4, 2, rngs=rngs)

    heads = ("key", "out", "query", "value")
    model = Model(nnx.Rngs(0))
    expected = {
        "bias": " ".join(f"attention/{head}/bias" for head in heads)
        + " bn/bias norms/*/bias out/bias",
        "norm": "attention/key_ln/scale attention/query_ln/scale bn/bias bn/scale norms/*/bias"
        " norms/*/scale",
        "embedding": "embed/embedding",
        "none": " ".join(f"attention/{head}/kernel" for head in heads) + " out/kernel",
    }
    state = nnx.state(model, nnx.Param)
    assert kinds(state) == kinds(nnx.to_pure_dict(state)) == expected

    optimizer = nnx.Optimizer(model, adam_jax.adamw(0.1, mask=decay_mask()), wrt=nnx.Param)
    before = jax.tree.leaves(state)
    optimizer.update(model, jax.tree.map(jnp.zeros_like, state))
    after = jax.tree.leaves(nnx.state(model, nnx.Param))
    moved = [bool(jnp.any(a != b)) for a, b in zip(before, after, strict=True)]
    assert moved == jax.tree.leaves(decay_mask()(state))
    assert sum(moved) == 5


@pytest.mark.exhaustive
def test_flax_linen():
    linen = pytest.importorskip("flax.linen", reason="Flax wants a recent JAX")
    boxed = linen.with_partitioning(linen.initializers.lecun_normal(), (None, "model"))

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.LayerNorm()(linen.Embed(5, 4)(x))
            x = linen.BatchNorm(True)(linen.Dense(3, kernel_init=boxed)(x))
            return linen.RMSNorm()(linen.Conv(3, (1,))(x))

    params = Model().init(jax.random.key(0), jnp.zeros((2, 2), int))["params"]
    assert kinds(params) == {
        "bias": "BatchNorm_0/bias Conv_0/bias Dense_0/bias LayerNorm_0/bias",
        "norm": "BatchNorm_0/bias BatchNorm_0/scale LayerNorm_0/bias LayerNorm_0/scale"
        " RMSNorm_0/scale",
        "embedding": "Embed_0/embedding",
        "none": "Conv_0/kernel Dense_0/kernel",
    }


@pytest.mark.exhaustive
def test_equinox():
    eqx = pytest.importorskip("equinox", reason="Equinox wants a recent JAX")
    key = jax.random.key(0)

    class Model(eqx.Module):
        token_embedding: eqx.nn.Embedding
        body: eqx.nn.Sequential
        norm: eqx.nn.LayerNorm
        cell: eqx.nn.GRUCell
        activation: object

    model = Model(
        eqx.nn.Embedding(5, 4, key=key),
        eqx.nn.Sequential([eqx.nn.Linear(4, 4, key=key), eqx.nn.LayerNorm(4)]),
        eqx.nn.LayerNorm(4),
        eqx.nn.GRUCell(4, 4, key=key),
        jax.nn.relu,
    )
    params = eqx.filter(model, eqx.is_inexact_array)  # the activation is None
    mask = decay_mask()(params)
    assert kinds(params) == {
        "bias": "body/layers/*/bias norm/bias cell/bias cell/bias_n",
        "norm": "body/layers/*/weight norm/weight norm/bias",  # the linear layer's is in "none" too
        "embedding": "token_embedding/weight",
        "none": "body/layers/*/weight cell/weight_ih cell/weight_hh",
    }
    assert mask.body.layers[0].weight
    assert not mask.body.layers[1].weight
    assert mask.activation is None
    tx = adam_jax.adamw(0.1, mask=decay_mask())
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), model)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
    assert jax.tree.leaves(moved) == jax.tree.leaves(mask)


NAMES = {
    # Haiku
    "transformer/layer_norm/scale": "norm",
    "transformer/layer_norm/offset": "bias norm",
    "mlp/~/linear_0/w": "",
    "mlp/~/linear_0/b": "bias",
    "embed/embeddings": "embedding",
    # PyTorch
    "model.layers.0.input_layernorm.weight": "norm",
    "model.embed_tokens.weight": "embedding",
    "model.layers.0.self_attn.q_norm.weight": "norm",
    "model.layers.0.self_attn.q_proj.weight": "",
    "layer1.0.bn2.bias": "bias norm",
    "rnn.bias_ih_l0": "bias",
    "embeddings.word_embeddings_layernorm.weight": "norm",
    "lm_head.weight": "",
    # Others
    "params/Block_3/BatchNorm2d_0/weight": "norm",
    "batch_normalization_1/gamma": "norm",
    "batch_normalization_1/beta": "bias norm",
    "backbone/norm_f/weight": "norm",
    "rmsnorm": "norm",
    "norms/3": "norm",
    "b1": "bias",
    "pos_embed": "embedding",
    "embedder/input_embedding": "embedding",
    "relative_attention_bias/embedding": "embedding",
    # What sounds like one and is none
    "time_embed/0/weight": "",
    "patch_embedding/kernel": "",
    "patch_embed/weight": "",
    "unembed/weight": "",
    "adaLN_modulation/1/weight": "",
    "norm1/linear/weight": "",
    "normals/weight": "",
    "lora_b": "",
    "kiln": "",
    "": "",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names(name, expected):
    path, leaf = named(name), jnp.ones((2, 2))
    assert path_name(path) == name
    assert " ".join(kind for kind, holds in KINDS.items() if holds(path, leaf)) == expected


def test_a_bare_leaf_is_of_no_kind():
    assert kinds(jnp.ones(3)) == {"bias": "", "norm": "", "embedding": "", "none": ""}
    assert decay_mask()(jnp.ones(3)) is True


def test_path_names_leave_only_the_last_box_out():
    attribute, key = jax.tree_util.GetAttrKey, jax.tree_util.DictKey
    assert path_name((key("w"), attribute("value"))) == "w"
    assert path_name((attribute("value"),)) == "value"
    assert path_name((key("value"),)) == "value"
    assert path_name((attribute("value"), key("kernel"))) == "value/kernel"
    assert path_name((key("head"), key("value"))) == "head/value"


PARAMS = {
    "embed": {"embedding": jnp.ones((5, 2))},
    "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
}


@pytest.mark.parametrize(
    ("decaying", "expected"),
    [
        ({}, "dense/kernel"),
        ({"biases": True}, "dense/bias dense/kernel"),
        ({"norms": True}, "dense/kernel norm/scale"),
        ({"norms": True, "biases": True}, "dense/bias dense/kernel norm/bias norm/scale"),
        ({"embeddings": True}, "dense/kernel embed/embedding"),
    ],
)
def test_decay_mask(decaying, expected):
    mask = decay_mask(**decaying)(PARAMS)
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    assert " ".join(path_name(path) for path, decays in leaves if decays) == expected


@pytest.mark.parametrize("mask", [decay_mask(), matrices_only])
def test_masks_are_those_of_any_optimizer_here_and_in_optax(mask):
    stream = gradients(3, PARAMS)

    def run(module):
        tx, params = module.adamw(0.1, weight_decay=0.5, mask=mask), PARAMS
        state = jax.jit(tx.init)(params)
        for g in stream:
            updates, state = jax.jit(tx.update)(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    assert_close(run(adam_jax), run(optax), atol=1e-5)
    tx = optax.chain(optax.masked(optax.scale(0.0), mask))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    held = [bool(jnp.any(u != 0)) for u in jax.tree.leaves(updates)]
    assert held == [not decays for decays in jax.tree.leaves(mask(PARAMS))]


def test_names_are_right_of_stacked_layers_where_dimensions_are_not():
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    assert decay_mask()(stacked) == decay_mask()(PARAMS)
    assert matrices_only(stacked) != matrices_only(PARAMS)  # the twin
    assert all(jax.tree.leaves(matrices_only(stacked)))


def test_masks_of_shapes_of_nothing_and_of_none():
    shapes = jax.eval_shape(lambda: PARAMS)
    tree = {"kernel": None, "dense": {}, "scale": 1.0}
    for mask in (decay_mask(), matrices_only):
        assert mask(shapes) == mask(PARAMS)
        assert mask(tree) == {"kernel": None, "dense": {}, "scale": False}
        assert mask({}) == {}


def test_switches_are_checked():
    with pytest.raises(TypeError, match=r"^`norms` must be True or False, got 'no'$"):
        decay_mask(norms="no")
