"""Pictures of metrics: what they show, and what they say of what they cannot draw."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import plots


@pytest.fixture(scope="module")
def history():
    """Of ten steps, measured by a real optimizer in a scan."""
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}
    tx = adam_jax.with_metrics(adam_jax.adam(0.1), paths="", successive=True)

    def body(carry, key):
        params, state = carry
        noise = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), params)
        updates, state = tx.update(noise, state, params)
        loss = optax.tree_utils.tree_sum(jax.tree.map(jnp.square, params))
        out = {"loss": loss, **adam_jax.read_metrics(state)}
        return (optax.apply_updates(params, updates), state), out

    keys = jax.random.split(jax.random.key(0), 10)
    return jax.lax.scan(body, (params, tx.init(params)), keys)[1]


def lines(figure):
    return {line.get_label(): line.get_ydata() for axes in figure.axes for line in axes.get_lines()}


def test_every_metric_is_drawn_once_as_it_is(history):
    figure = plots.metrics(history)
    drawn = lines(figure)
    assert set(drawn) == {name for name in history if "/" not in name}
    for name, values in drawn.items():
        np.testing.assert_array_equal(values, np.float64(history[name]))
    assert all(axes.get_title("left") and axes.get_xlabel() == "step" for axes in figure.axes)


def test_a_list_of_dicts_is_the_same(history):
    entries = [{name: float(values[i]) for name, values in history.items()} for i in range(10)]
    expected, found = lines(plots.metrics(history)), lines(plots.metrics(entries))
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_steps_are_counted_from_one_and_by_every(history):
    (line, *_) = plots.metrics(history, every=5).axes[0].get_lines()
    np.testing.assert_array_equal(line.get_xdata(), 5 * np.arange(1, 11))


def test_leaves_have_a_line_each(history):
    drawn = lines(plots.by_path(history, "update_to_param"))
    assert set(drawn) == {"bias", "kernel"}
    np.testing.assert_array_equal(drawn["bias"], np.float64(history["bias/update_to_param"]))


def test_gaps_stay_gaps_and_zeros_need_no_log_axis():
    figure = plots.metrics([{"grad_norm": 0.0}, {}, {"grad_norm": 0.0, "aux": "anything"}])
    assert np.isnan(lines(figure)["grad_norm"][1])
    assert figure.axes[0].get_yscale() == "linear"
    figure = plots.metrics([{"grad_norm": 1.0}])
    assert figure.axes[0].get_yscale() == "log"


def test_figures_can_be_written(history, tmp_path):
    for name, figure in [("a", plots.metrics(history)), ("b", plots.by_path(history, "eps_share"))]:
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert figure._repr_png_().startswith(b"\x89PNG")  # as notebooks show it


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.metrics([]), ValueError, "^`history` must have an entry, got none$"),
        (lambda: plots.metrics({}), ValueError, "^`history` must have an entry, got none$"),
        (lambda: plots.metrics([{"x": 1}]), ValueError, "must have metrics of with_metrics, got x"),
        (lambda: plots.metrics(3), TypeError, "^`history` must be dicts of metrics, got 3$"),
        (lambda: plots.metrics({"loss": np.ones((2, 2))}), ValueError, r"got 'loss' of \(2, 2\)"),
        (lambda: plots.metrics([{"loss": 1}], every=0), ValueError, "`every` must be a positive"),
        (lambda: plots.by_path([{"loss": 1}], "loss"), ValueError, "must be one that leaves have"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'adam_jax\[plots\]'"):
        plots.metrics([{"loss": 1.0}])
