"""Which leaves of a tree are biases, scales of norms or embeddings: told by their names.

A name is a leaf's path with slashes, ``encoder/layers/0/kernel``. Libraries name leaves alike, and
names stay right where layers are stacked (`jax.vmap`, `jax.lax.scan`) and a bias is a matrix. But
they are a convention: print what rules take (``by_path(rules).describe``) before you rely on it.
"""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from adam_jax.hyperparameters import flag

Predicate: TypeAlias = Callable[[Any, Any], bool]

_BIAS = re.compile(r"(\w+_)?bias(es)?(_\w+)?|b\d*|offset|beta")

# layer_norm_0, batch_norm1d, input_layernorm, norms, norm_f, rms_norm_attn; ln, ln_1, bn2.
_AFTER = r"_?\d+|_([a-z]|in|out|pre|post|before|after|final|attn|attention|mlp|ffn)"
_NORM = re.compile(rf"((\w+_)?[a-z]*norm(alization)?s?([123]d)?|(\w+_)?(ln|bn|gn)s?)({_AFTER})*")
_NORMS_ALONE = ("scale", "offset", "gamma", "beta")
_OF_NORM = ("weight", "w", "g", "bias", "b")

# embedding, Embed_0, tok_embeddings, pos_embed; and names of a few models.
_EMBEDDING = re.compile(
    r"(\w+_)?(emb|embed|embeds|embedding|embeddings|embedder)(_?\d+)?"
    r"|wte|wpe|embed_(tokens|positions|in)"
)


def path_name(path: Any) -> str:
    """A key path of JAX as a name with slashes, however the containers are made.

    The ``.value`` at the end is left out, by which Flax's boxes hold their arrays.

    >>> params = {"encoder": {"layers": [{"kernel": 1.0}]}}
    >>> [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    ['encoder/layers/0/kernel']
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_bias(path: Any, leaf: Any = None) -> bool:
    """Whether a leaf is a bias, of whatever layer: what is added.

    It is called ``bias``, ``qkv_bias``, ``bias_ih``, ``b``, ``b1``, ``offset`` or ``beta``.
    """
    del leaf
    return bool(_BIAS.fullmatch(_parts(path)[-1]))


def is_norm(path: Any, leaf: Any = None) -> bool:
    """Whether a leaf belongs to a normalization: its scale or its bias.

    It is called ``scale``, ``offset``, ``gamma`` or ``beta``, or as a norm is (``attention_norm``,
    ``ln_f``, ``rmsnorm``); or it is the weight or the bias of a module called so (``LayerNorm_0``,
    ``norms/0``, ``bn1``, ``input_layernorm``). And a vector called ``weight`` is one, as in a norm
    inside Equinox's ``Sequential``, which has no name; stacked ones are not recognised.
    """
    parts = _parts(path)
    own = parts.pop()
    while parts and parts[-1].isdigit():
        parts.pop()
    named = own in _NORMS_ALONE or _NORM.fullmatch(own)
    of_norm = own in _OF_NORM and parts and _NORM.fullmatch(parts[-1])
    vector = own == "weight" and leaf is not None and np.ndim(leaf) <= 1
    return bool(named or of_norm or vector)


def is_embedding(path: Any, leaf: Any = None) -> bool:
    """Whether a leaf is a table of embeddings: of tokens, positions, classes.

    It is called so (``embedding``, ``tok_embeddings``, ``pos_embed``, ``wte``, ``wpe``), or it is
    the ``weight`` of a module called so (``embed_tokens/weight``). What embeds patches is not one,
    for it is a matrix that multiplies. Nor is the head, unless it is the same leaf.
    """
    del leaf
    *parts, own = _parts(path)
    name = parts[-1] if own == "weight" and parts else own
    return bool(_EMBEDDING.fullmatch(name)) and "patch" not in name


def decay_mask(
    *, biases: bool = False, norms: bool = False, embeddings: bool = False
) -> Callable[[optax.Params], Any]:
    """A mask for weight decay: every leaf but biases, norms and embeddings, unless told otherwise.

    Args:
      biases: whether what `is_bias` takes decays, norms' own only if ``norms`` is true too.
      norms: whether what `is_norm` takes does.
      embeddings: whether what `is_embedding` takes does.

    Returns:
      A function from parameters to booleans: the ``mask`` of an optimizer here or in Optax.

    Raises:
      TypeError: an argument is no boolean.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(3e-4, weight_decay=0.1, mask=decay_mask())
      >>> layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> decay_mask()({"Dense_0": layer, "LayerNorm_0": {"scale": jnp.ones(2)}})
      {'Dense_0': {'bias': False, 'kernel': True}, 'LayerNorm_0': {'scale': False}}
    """
    choices = {
        is_bias: flag("biases", biases),
        is_norm: flag("norms", norms),
        is_embedding: flag("embeddings", embeddings),
    }
    left_out = [predicate for predicate, decays in choices.items() if not decays]

    def mask(params: optax.Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: not any(predicate(path, leaf) for predicate in left_out), params
        )

    return mask


def matrices_only(params: optax.Params) -> Any:
    """A mask for weight decay: leaves of two dimensions and more. Stacked vectors are among them.

    >>> matrices_only({"kernel": np.ones((2, 2)), "bias": np.ones(2), "temperature": 1.0})
    {'bias': False, 'kernel': True, 'temperature': False}
    """
    return jax.tree.map(lambda leaf: np.ndim(leaf) >= 2, params)


def _parts(path: Any) -> list[str]:
    """The name's parts in snake_case, one at least, without numbers at its end."""
    # Some names have slashes of their own, as Haiku's modules, or dots, as PyTorch's.
    parts = [_snake(part) for part in re.split(r"[/.]", path_name(path))]
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    return parts


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
