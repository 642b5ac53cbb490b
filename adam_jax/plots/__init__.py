"""Pictures of what `with_metrics` measured, step by step.

Drawn without pyplot, so that a caller's own figures and backend stay as they are; a notebook shows
what a function here returns. The colours are Okabe and Ito's, which the colour-blind tell apart;
lines are named at their ends. They need matplotlib: ``pip install 'adam_jax[plots]'``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from adam_jax.hyperparameters import brief, whole
from adam_jax.plots.canvas import MOST_LINES, draw, grid
from adam_jax.plots.heat_map import heat_map
from adam_jax.plots.panels import NORMS, PANELS, History, curves_of, natural, panel_of

__all__ = ["by_path", "compare", "metrics"]


def metrics(history: History, *, every: int = 1) -> Any:
    """Draw the metrics of all leaves together, those that belong together in a panel.

    Args:
      history: what `read_metrics` returned at each step, or ``info`` of `train_step`; or one such
        dict of arrays along the steps, as `jax.lax.scan` returns it. Gaps, NaN too, stay gaps.
      every: how many steps lie between two of its entries.

    Returns:
      A `matplotlib.figure.Figure`; a notebook shows it, ``figure.savefig(path)`` writes it. Panels
      of metrics that are not in the history are left out; so are root mean squares where there are
      norms, of which they are a fixed part. A triangle at the bottom of a logarithmic axis is a 0,
      one at the top is infinite.

    Raises:
      ImportError: there is no matplotlib.
      ValueError: the history is empty, or has none of these metrics.
      TypeError: it is of another kind.

    Example:
      >>> figure = metrics([{"loss": 2.0, "eps_share": 0.1}, {"loss": 1.0, "eps_share": 0.0}])
      >>> [axes.get_title("left") for axes in figure.axes]
      ['Loss', 'Entries where eps decides']
    """
    curves, steps = curves_of(history), _steps(every)
    if any(f"{key}_norm" in curves for key in NORMS):
        curves = {name: x for name, x in curves.items() if not name.endswith("_rms")}
    panels = [panel for panel in PANELS if curves.keys() & panel.lines.keys()]
    if not panels:
        raise ValueError(f"`history` must have metrics of with_metrics, got {brief(list(curves))}")
    figure, panes = grid(len(panels))
    for axes, panel in zip(panes, panels, strict=True):
        found = {label: curves[name] for name, label in panel.lines.items() if name in curves}
        draw(axes, panel, found, steps)
    return figure


def compare(runs: Mapping[str, History], names: Sequence[str], *, every: int = 1) -> Any:
    """Draw some metrics of several runs, a panel a metric and in each a line a run.

    Args:
      runs: histories, as `metrics` takes them, by the names of the runs: at most 7.
      names: the metrics, also of single leaves, as ``"head/bias/grad_norm"``.
      every: how many steps lie between two entries.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: there is no matplotlib.
      ValueError: there are no runs or too many, one is empty, or none has a metric.
      TypeError: a history is of another kind.

    Example:
      >>> figure = compare({"short": [{"loss": 2.0}], "long": [{"loss": 3.0}]}, ["loss"])
      >>> [text.get_text() for text in figure.axes[0].texts[:2]]
      ['short', 'long']
    """
    if not 0 < len(runs) <= MOST_LINES:
        raise ValueError(f"`runs` must be 1 to {MOST_LINES} histories, got {len(runs)}")
    curves, steps = {run: curves_of(history) for run, history in runs.items()}, _steps(every)
    found = {
        name: {run: each[name] for run, each in curves.items() if name in each} for name in names
    }
    for name, of_runs in found.items():
        if not of_runs:
            raise ValueError(f"`names` must be metrics of the runs, got {brief(name)}")
    figure, panes = grid(len(found))
    colours = dict(zip(runs, range(len(runs)), strict=True))
    for axes, (name, of_runs) in zip(panes, found.items(), strict=True):
        draw(axes, panel_of(name), of_runs, steps, colours)
    return figure


def by_path(history: History, metric: str, *, every: int = 1) -> Any:
    """Draw one metric of each leaf that has its own: lines of up to 7 leaves, a heat map of more.

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
      >>> [text.get_text() for text in figure.axes[0].texts[:2]]
      ['b', 'w']
    """
    curves, steps, ending = curves_of(history), _steps(every), f"/{metric}"
    found = {k.removesuffix(ending): x for k, x in curves.items() if k.endswith(ending)}
    if not found:
        raise ValueError(f"`metric` must be one that leaves have, by `paths`, got {brief(metric)}")
    found = {path: found[path] for path in sorted(found, key=natural)}
    panel = panel_of(metric)
    if len(found) > MOST_LINES:
        return heat_map(panel, found, steps)
    figure, (axes,) = grid(1)
    draw(axes, panel, found, steps)
    return figure


def _steps(every: Any) -> int:
    return whole("every", every, "a positive integer", lambda n: n > 0)
