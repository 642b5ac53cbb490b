"""Published models, by the shapes of their parameters alone.

A tree has a leaf for every matrix and vector of every layer, as they are trained. Matrices are
(in, out), as JAX libraries lay them out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def gpt2(width: int, depth: int) -> Any:
    """GPT-2, whose head is the token embedding.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the layout of
    https://github.com/openai/gpt-2/blob/master/src/model.py.

    >>> gpt2(768, 12)["blocks"][0]["mlp"]["c_fc"]["w"].shape
    (768, 3072)
    """
    block = {
        "ln_1": _norm(width),
        "attn": {"c_attn": _dense(width, 3 * width), "c_proj": _dense(width, width)},
        "ln_2": _norm(width),
        "mlp": {"c_fc": _dense(width, 4 * width), "c_proj": _dense(4 * width, width)},
    }
    return {
        "wte": _array(50257, width),
        "wpe": _array(1024, width),
        "blocks": [block] * depth,
        "ln_f": _norm(width),
    }


def llama3(width: int, depth: int, hidden: int, kv_width: int) -> Any:
    """Llama 3, without biases; the head is a matrix of its own.

    Grattafiori et al. 2024, "The Llama 3 Herd of Models", Table 3, https://arxiv.org/abs/2407.21783;
    the layout of https://github.com/meta-llama/llama3/blob/main/llama/model.py.

    Args:
      width: of the residual stream.
      depth: the number of layers.
      hidden: width inside the feed-forward layers.
      kv_width: key and value heads times their width.
    """
    vocabulary = 128256
    layer = {
        "attention_norm": _array(width),
        "attention": {
            "wq": _array(width, width),
            "wk": _array(width, kv_width),
            "wv": _array(width, kv_width),
            "wo": _array(width, width),
        },
        "ffn_norm": _array(width),
        "feed_forward": {
            "w1": _array(width, hidden),
            "w2": _array(hidden, width),
            "w3": _array(width, hidden),
        },
    }
    return {
        "tok_embeddings": _array(vocabulary, width),
        "layers": [layer] * depth,
        "norm": _array(width),
        "output": _array(width, vocabulary),
    }


def vit(width: int, depth: int, patch: int) -> Any:
    """A Vision Transformer for ImageNet-1k at 224 pixels, with its head of 1000 classes.

    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", Table 1,
    https://arxiv.org/abs/2010.11929; the layout of https://github.com/google-research/vision_transformer
    with the heads of an attention matrix side by side.
    """
    attention = ("query", "key", "value", "out")
    block = {
        "norm_1": _norm(width),
        "attention": {name: _dense(width, width) for name in attention},
        "norm_2": _norm(width),
        "mlp": {"dense_1": _dense(width, 4 * width), "dense_2": _dense(4 * width, width)},
    }
    return {
        "embedding": _dense(3 * patch**2, width),
        "cls": _array(1, 1, width),
        "position": _array(1, (224 // patch) ** 2 + 1, width),
        "blocks": [block] * depth,
        "norm": _norm(width),
        "head": _dense(width, 1000),
    }


#: Each gives the shapes of one published model.
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2-small": partial(gpt2, width=768, depth=12),
    "gpt2-xl": partial(gpt2, width=1600, depth=48),
    "llama3-8b": partial(llama3, width=4096, depth=32, hidden=14336, kv_width=8 * 128),
    "llama3-70b": partial(llama3, width=8192, depth=80, hidden=28672, kv_width=8 * 128),
    "vit-h-14": partial(vit, width=1280, depth=32, patch=14),
}


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _dense(fan_in: int, fan_out: int) -> Any:
    return {"w": _array(fan_in, fan_out), "b": _array(fan_out)}


def _norm(width: int) -> Any:
    return {"scale": _array(width), "bias": _array(width)}
