"""Pictures of a training's metrics: what `with_metrics` measured, step by step.

Drawn without pyplot, so that a caller's own figures and backend stay as they are; a notebook shows
what a function here returns. They need matplotlib: ``pip install 'adam_jax[plots]'``.
"""

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from adam_jax.hyperparameters import brief, whole

History: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Any]

# Okabe and Ito (2008), which the colour-blind tell apart, less their yellow: too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)))
_QUANTILES = tuple(f"effective_learning_rate_{part}" for part in ("05", "50", "95"))
_COSINES = ("cosine_update_gradient", "cosine_successive_updates")

#: The panels: a title, the metrics in it, and how its vertical axis is scaled.
_PANELS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("loss", ("loss",), "log"),
    ("norms", ("grad_norm", "update_norm", "param_norm"), "log"),
    ("root mean squares", ("grad_rms", "update_rms", "param_rms"), "log"),
    ("update over parameter, norms", ("update_to_param",), "log"),
    ("effective learning rate, quantiles", _QUANTILES, "log"),
    ("signal to noise, |mean| / root of mean square", ("signal_to_noise",), "linear"),
    ("share of entries where eps decides", ("eps_share",), "share"),
    ("cosines of the update", _COSINES, "cosine"),
)


def metrics(history: History, *, every: int = 1) -> Any:
    """Draw the metrics of all leaves together, a panel for those that belong together.

    Args:
      history: what `read_metrics` returned at each step (or ``info`` of `train_step`); or one such
        dict of arrays along the steps, as it comes out of `jax.lax.scan`.
      every: how many steps lie between two of its entries.

    Returns:
      A `matplotlib.figure.Figure`; a notebook shows it, ``figure.savefig(path)`` writes it. Panels
      of metrics that are not in the history are left out.

    Raises:
      ImportError: there is no matplotlib.
      ValueError: the history is empty, or none of its entries is a metric.
      TypeError: it is of another kind.

    Example:
      >>> figure = metrics([{"loss": 2.0}, {"loss": 1.0}])
      >>> [axes.get_title("left") for axes in figure.axes]
      ['loss']
    """
    curves, steps = _curves(history), whole("every", every, "a positive integer", lambda n: n > 0)
    panels = [(title, [n for n in names if n in curves], y) for title, names, y in _PANELS]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise ValueError(f"`history` must have metrics of with_metrics, got {', '.join(curves)}")
    figure, grid = _grid(len(panels))
    for axes, (title, names, scale) in zip(grid, panels, strict=True):
        for index, name in enumerate(names):
            _line(axes, curves[name], steps, index, name)
        _finish(axes, title, scale, legend=len(names) > 1)
    return figure


def by_path(history: History, metric: str, *, every: int = 1) -> Any:
    """Draw one metric of each leaf that has its own, over the steps.

    Args:
      history: as `metrics` takes it, of `with_metrics` with ``paths``.
      metric: such as ``"update_to_param"``.
      every: how many steps lie between two of its entries.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: there is no matplotlib.
      ValueError: the history is empty, or no leaf has this metric.
      TypeError: the history is of another kind.

    Example:
      >>> figure = by_path([{"w/grad_rms": 2.0, "b/grad_rms": 1.0}], "grad_rms")
      >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
      ['b', 'w']
    """
    curves, steps = _curves(history), whole("every", every, "a positive integer", lambda n: n > 0)
    ending = f"/{metric}"
    found = {k.removesuffix(ending): v for k, v in sorted(curves.items()) if k.endswith(ending)}
    if not found:
        raise ValueError(f"`metric` must be one that leaves have (`paths`), got {brief(metric)}")
    figure, (axes,) = _grid(1)
    for index, (path, values) in enumerate(found.items()):
        _line(axes, values, steps, index, path)
    title, scale = next(((t, y) for t, names, y in _PANELS if metric in names), (metric, "log"))
    _finish(axes, title if len(title) < len(metric) else metric, scale, legend=True)
    return figure


def _curves(history: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Each metric along the steps; NaN where an entry does not have it."""
    if isinstance(history, Mapping):
        curves = {name: np.asarray(values, np.float64) for name, values in history.items()}
    elif isinstance(history, Sequence) and all(isinstance(each, Mapping) for each in history):
        names = dict.fromkeys(name for each in history for name in each if name != "aux")
        curves = {
            name: np.array([each.get(name, math.nan) for each in history], np.float64)
            for name in names
        }
    else:
        raise TypeError(f"`history` must be dicts of metrics, got {brief(history)}")
    for name, values in curves.items():
        if values.ndim != 1:
            raise ValueError(f"`history` must have scalars a step, got {name!r} of {values.shape}")
    if not any(values.size for values in curves.values()):
        raise ValueError("`history` must have an entry, got none")
    return curves


def _grid(panels: int) -> tuple[Any, list[Any]]:
    """A figure with so many axes, two in a row."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - for who draws only
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'adam_jax[plots]'") from None
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(5 * columns, 2.6 * rows), dpi=100, layout="constrained")
    # Notebooks know figures only once pyplot is loaded; this they look for themselves.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(panels)]


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _line(axes: Any, values: Any, every: int, index: int, label: str) -> None:
    style = {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index // len(_COLOURS) % len(_DASHES)],
        # What was measured once, or between gaps, is no line.
        "marker": "." if np.isfinite(values).sum() < 2 else None,
    }
    axes.plot(every * np.arange(1, len(values) + 1), values, label=label, linewidth=1.3, **style)


def _finish(axes: Any, title: str, scale: str, *, legend: bool) -> None:
    """Titles, scales and names; a log axis only where there is something above 0."""
    drawn = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    if scale == "log" and np.any(drawn > 0) and not np.any(drawn < 0):
        axes.set_yscale("log", nonpositive="mask")
    if scale in ("share", "cosine"):
        axes.set_ylim(-0.05 if scale == "share" else -1.05, 1.05)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    if legend:
        many = len(axes.get_lines()) > 3  # beside the lines then, and not over them
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(fontsize=8, framealpha=0.7, edgecolor="none", **(beside if many else {}))
