"""Which rule takes which leaf, how that is told, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.leaves import is_bias, is_norm
from adam_jax.services.by_path import by_path
from adam_jax.services.path_rules import FREEZE, Scale

LR = Scale(learning_rate=0.1)
PARAMS = {name: jnp.array(1.0) for name in "abc"}


def test_the_first_rule_that_matches_takes_the_leaf():
    first, last = ("[ab]", Scale(0.5)), ("[bc]", FREEZE)
    forth, back = (by_path(rules) for rules in ([first, last], [last, first]))
    assert [row.names for row in forth.describe(PARAMS).rows] == [("a", "b"), ("c",), ()]
    assert [row.names for row in back.describe(PARAMS).rows] == [("b", "c"), ("a",), ()]
    assert forth.labels(PARAMS) == {"a": "shared", "b": "shared", "c": "frozen"}
    assert back.labels(PARAMS) == {"a": "shared", "b": "frozen", "c": "frozen"}
    for groups, sizes in ((forth, [0.05, 0.05, 0]), (back, [0.05, 0, 0])):
        tx = groups(optax.sgd(0.1))
        updates, _ = tx.update(PARAMS, tx.init(PARAMS))
        np.testing.assert_allclose([-u for u in updates.values()], sizes, rtol=1e-6)


def test_a_mapping_is_its_pairs_and_patterns_may_be_compiled():
    pairs = [("^A", LR), (is_bias, FREEZE), ("c", LR)]
    flags = [(re.compile("^A", re.IGNORECASE), LR), *pairs[1:]]
    for groups in (by_path(dict(flags)), by_path(flags), by_path(tuple(map(list, flags)))):
        assert [row.names for row in groups.describe(PARAMS).rows] == [("a",), ("b",), ("c",), ()]
    assert by_path(pairs).describe(PARAMS).rows[0].names == ()  # the twin


def test_rules_see_no_values():
    def large(path, leaf):
        return bool(leaf > 1)

    scalars = by_path([(lambda _, leaf: leaf.shape == (), LR)]).describe(PARAMS)
    assert scalars.rows[0].names == ("a", "b", "c")
    with pytest.raises(TypeError, match="not supported between instances of 'ShapeDtypeStruct'"):
        by_path({large: LR}).labels(PARAMS)


def test_the_description_is_a_table():
    layer = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "LayerNorm_0": {"scale": jnp.ones(3)}}
    shapes = jax.eval_shape(lambda: {"embed": jnp.ones((500, 3)), "layers": [layer] * 3, "t": 1.0})
    groups = by_path(
        [
            (is_bias, Scale(weight_decay=0)),
            (r"layers/0/", Scale(learning_rate=0.25, weight_decay=1e-3)),
            (r"/0/kernel", FREEZE),
            (lambda path, leaf: leaf.ndim == 0, optax.sgd(0.1)),
            ("embed", Scale(learning_rate=jnp.float32(2))),
        ]
    )
    expected = """\
rule       action                                      leaves  parameters  names
is_bias    weight_decay * 0                                 3           9  layers/*/bias
layers/0/  learning_rate * 0.25, weight_decay * 0.001       2           9  layers/0/LayerNorm_0/scale, layers/0/kernel
/0/kernel  frozen                                           0           0
<lambda>   its own optimizer                                1           1  t
embed      learning_rate * float32[]                        1       1,500  embed
(none)     as it is                                         4          18  layers/*/LayerNorm_*/scale, layers/*/kernel"""  # noqa: E501
    assert str(groups.describe(shapes)) == expected
    many = by_path({"a": Scale()}).describe({f"a{k}": {"w": 1.0} for k in "uvwxyz"})
    assert str(many).splitlines()[1].endswith("au/w, av/w, aw/w, and 3 more")
    assert many.rows[0].names == tuple(f"a{k}/w" for k in "uvwxyz")


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"(": LR}, ValueError, "rule '(' is no regular expression: missing ), unterminated"),
        (3, TypeError, "`rules` must be pairs of pattern and action, got 3"),
        ("ab", TypeError, "`rules` must be pairs of pattern and action, got 'ab'"),
        ([("a",)], TypeError, "`rules` must be pairs of pattern and action, got ('a',)"),
        ({1: LR}, TypeError, "a pattern in `rules` must be a regular expression or a function"),
        ({re.compile(b"a"): LR}, TypeError, "a pattern in `rules` must be a regular expression"),
        ({"a": 0.1}, TypeError, "the action of rule 'a' must be a Scale, FREEZE or an Optax"),
        ({is_bias: optax.adam}, TypeError, "the action of rule 'is_bias' must be a Scale"),
    ],
)
def test_rules_are_checked(rules, error, message):
    with pytest.raises(error, match="^" + re.escape(message)) as caught:
        by_path(rules)
    assert "\n" not in str(caught.value)


def number(path, leaf):
    return 1


def test_other_arguments_are_checked():
    for name in ("learning_rate", "weight_decay"):
        with pytest.raises(ValueError, match=rf"^`{name}` must be a finite number >= 0, got -1"):
            Scale(**{name: -1})
    with pytest.raises(TypeError, match=r"^`learning_rate` must be a finite number >= 0, got <fun"):
        Scale(learning_rate=optax.linear_schedule(1.0, 0.0, 3))
    with pytest.raises(TypeError, match=r"^`inner` must be an Optax transformation, got 1$"):
        by_path({})(1)
    with pytest.raises(TypeError, match=r"^`allow_unused` must be True or False, got 1$"):
        by_path({}, allow_unused=1)
    with pytest.raises(TypeError, match=r"^`number\(path, leaf\)` must be True or False, got 1"):
        by_path({number: LR}).labels(PARAMS)
    with pytest.raises(TypeError, match=r"^params\['f'\] must be an array, got <function"):
        by_path({"f": LR}).describe({"f": number})


def test_a_rule_that_takes_no_leaf_is_an_error():
    inner = adam_jax.adamw(0.1)
    for rules, message in [
        ({"[ab]": LR, "d": FREEZE}, "rule 'd' takes no leaf: it matches none"),
        ({"[ab]": LR, "a": FREEZE}, "rule 'a' takes no leaf: rules before it take what it matches"),
        ({is_norm: LR}, "rule 'is_norm' takes no leaf: it matches none"),
    ]:
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            by_path(rules)(inner).init(PARAMS)
        assert by_path(rules, allow_unused=True)(inner).init(PARAMS) is not None
