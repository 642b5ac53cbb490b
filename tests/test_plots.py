"""Pictures of metrics: what they show, and what they say of what they cannot draw."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import plots
from adam_jax.plots.canvas import COLOURS, plain

STEPS = 10


@pytest.fixture(scope="module")
def history():
    """Of ten steps, measured by a real optimizer in a scan."""
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}
    tx = adam_jax.with_metrics(adam_jax.adam(0.1), paths="", successive=True)

    def body(carry, key):
        params, state = carry
        noise = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), params)
        updates, state = tx.update(noise, state, params)
        loss = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
        out = {"loss": loss, **adam_jax.read_metrics(state)}
        return (optax.apply_updates(params, updates), state), out

    keys = jax.random.split(jax.random.key(0), STEPS)
    return jax.lax.scan(body, (params, tx.init(params)), keys)[1]


def panels(figure):
    return {axes.get_title("left"): axes for axes in figure.axes}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def colour_of(axes, y):
    """Of the line with these heights."""
    (line,) = [x for x in axes.get_lines() if np.array_equal(x.get_ydata(), y, equal_nan=True)]
    return line.get_color()


@pytest.mark.exhaustive
def test_each_metric_is_drawn_as_it_is_and_named(history):
    found = panels(plots.metrics(history))
    assert list(found) == [
        "Loss",
        "Norms",
        "Update / parameters",
        "Effective learning rate",
        "Signal to noise",
        "Entries where eps decides",
        "Direction of the update",
    ]
    for title, names in {
        "Norms": ["grad_norm", "update_norm", "param_norm"],
        "Direction of the update": ["cosine_update_gradient", "cosine_successive_updates"],
        "Effective learning rate": ["effective_learning_rate_05", "effective_learning_rate_95"],
        "Loss": ["loss"],
    }.items():
        colours = [colour_of(found[title], np.float64(history[name])) for name in names]
        assert len(set(colours)) == len(names)
    assert {"gradient", "update", "parameters"} <= set(texts(found["Norms"]))
    assert {"95%", "50%", "5%"} <= set(texts(found["Effective learning rate"]))
    assert all(axes.get_xlabel() == "step" for axes in found.values())
    assert found["Norms"].get_yscale() == "log"
    assert found["Signal to noise"].get_yscale() == "linear"
    assert found["Direction of the update"].get_ylim() == (-1.05, 1.05)


def test_root_mean_squares_stand_in_for_norms(history):
    only = {name: x for name, x in history.items() if name.endswith("_rms") and "/" not in name}
    assert list(panels(plots.metrics(only))) == ["Typical entries"]


def test_a_list_of_dicts_is_the_same(history):
    entries = [{name: float(x[i]) for name, x in history.items()} for i in range(STEPS)]
    expected, found = (panels(plots.metrics(each)) for each in (history, entries))
    assert expected.keys() == found.keys()
    for title, axes in expected.items():
        for a, b in zip(axes.get_lines(), found[title].get_lines(), strict=True):
            np.testing.assert_allclose(a.get_ydata(), b.get_ydata(), rtol=1e-6)


def test_steps_are_counted_from_one_and_by_every(history):
    for figure in (
        plots.metrics(history, every=5),
        plots.compare({"a": history}, ["loss"], every=5),
    ):
        line = figure.axes[0].get_lines()[0]
        np.testing.assert_array_equal(line.get_xdata(), 5 * np.arange(1, 11))


def test_runs_have_one_colour_in_all_panels(history):
    later = {name: 2 * x for name, x in history.items() if name != "eps_share"}
    names = ["loss", "eps_share", "bias/grad_norm"]
    figure = plots.compare({"first": history, "later": later}, names)
    loss, eps, bias = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == ["loss", "eps_share", "grad_norm"]
    assert texts(loss)[:2] == ["first", "later"]
    assert "later" not in texts(eps)
    assert "bias" in texts(bias)
    for name, axes in [("loss", loss), ("bias/grad_norm", bias)]:
        assert colour_of(axes, np.float64(later[name])) == COLOURS[1]


def test_few_leaves_are_lines(history):
    (axes,) = plots.by_path(history, "update_to_param").axes
    assert sorted(texts(axes)[:2]) == ["bias", "kernel"]
    assert colour_of(axes, np.float64(history["kernel/update_to_param"])) == COLOURS[1]


def test_many_leaves_are_a_heat_map():
    rows = {f"layers/{i}/kernel": np.geomspace(1, 10 + i, 5) for i in (*range(12), 100)}
    rows["layers/3/kernel"] = np.array([1.0, 0.0, np.nan, 1.0, 1.0])
    history = {f"{path}/grad_rms": row for path, row in rows.items()}
    axes, _ = plots.by_path(history, "grad_rms", every=2).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == list(rows)  # layer 10 after layer 2
    (image,) = axes.get_images()
    assert image.get_extent() == [1, 11, 13, 0]
    shown = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(shown[0], rows["layers/0/kernel"])
    zero, gap, one = image.cmap(image.norm(np.ma.masked_invalid(shown[3, 1:4])))
    vermilion = tuple(int(COLOURS[1][i : i + 2], 16) / 255 for i in (1, 3, 5))
    np.testing.assert_allclose(zero[:3], vermilion)
    np.testing.assert_allclose(gap[:3], 0xD0 / 255)
    assert len({tuple(zero), tuple(gap), tuple(one)}) == 3
    assert texts(axes) == ["vermilion: 0; grey: not measured"]
    cosines = {f"{path}/cosine_update_gradient": row for path, row in rows.items()}
    image = plots.by_path(cosines, "cosine_update_gradient").axes[0].get_images()[0]
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)


def test_a_dead_leaf_is_seen_on_a_log_axis():
    history = {"a/grad_rms": np.geomspace(1e-3, 1, 8), "b/grad_rms": np.zeros(8)}
    (axes,) = plots.by_path(history, "grad_rms").axes
    assert axes.get_yscale() == "log"
    assert "b: 0" in texts(axes)
    (marks,) = [x for x in axes.get_lines() if x.get_marker() == "v" and len(x.get_xdata())]
    assert marks.get_color() == COLOURS[1]


def test_gaps_stay_gaps_and_what_is_infinite_is_at_the_top():
    history = [{"grad_norm": 1.0}, {}, {"grad_norm": 100.0, "aux": "anything"}]
    (axes,) = plots.metrics([*history, {"grad_norm": np.inf}]).axes
    line, alone, *_ = axes.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [1, np.nan, 100, np.nan])
    np.testing.assert_array_equal(alone.get_xdata(), [1, 3])  # no line, but dots
    (above,) = [x for x in axes.get_lines() if x.get_marker() == "^"]
    assert list(above.get_xdata()) == [4]


@pytest.mark.costly
@pytest.mark.parametrize("values", [[0.0, 0.0], [2.0], [np.nan, np.nan], [1.0, 1.5], [3e38, 1e-38]])
def test_anything_can_be_drawn(values, tmp_path):
    names = ["loss", "grad_norm", "signal_to_noise", "eps_share", "skipped_total"]
    history = {name: np.array(values) for name in names}
    for figure in (plots.metrics(history), plots.by_path({"a/grad_rms": values}, "grad_rms")):
        figure.savefig(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert figure._repr_png_().startswith(b"\x89PNG")  # as notebooks show it
    log = values == [3e38, 1e-38]
    assert (panels(plots.metrics(history))["Norms"].get_yscale() == "log") is log


def test_numbers_are_written_plainly():
    assert [plain(x) for x in (0.001, 20, 1e-5, 1e10, 0.0)] == ["0.001", "20", "1e-5", "1e10", "0"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.metrics([]), ValueError, "^`history` must have an entry, got none$"),
        (lambda: plots.metrics({}), ValueError, "^`history` must have an entry, got none$"),
        (lambda: plots.metrics({"loss": []}), ValueError, "^`history` must have an entry"),
        (lambda: plots.metrics([{"x": 1}]), ValueError, r"must have metrics .* got \['x'\]$"),
        (lambda: plots.metrics(3), TypeError, "^`history` must be dicts of metrics, got 3$"),
        (lambda: plots.metrics({"loss": np.ones((2, 2))}), ValueError, r"'loss' of \(2, 2\)$"),
        (lambda: plots.metrics([{"loss": 1}], every=0), ValueError, "`every` must be a positive"),
        (
            lambda: plots.by_path([{"loss": 1}], "loss"),
            ValueError,
            "leaves have.* got 'loss'$",
        ),
        (lambda: plots.compare({}, ["loss"]), ValueError, "`runs` must be 1 to 7 .*, got 0$"),
        (lambda: plots.compare({"a": [{"loss": 1}]}, ["x"]), ValueError, "of the runs, got 'x'$"),
        (lambda: plots.compare({"a": []}, ["loss"]), ValueError, "`history` must have an entry"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'adam_jax\[plots\]'"):
        plots.metrics([{"loss": 1.0}])
