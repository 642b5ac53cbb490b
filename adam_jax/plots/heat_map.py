"""Many leaves: a row a leaf, and a column a step."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adam_jax.plots.canvas import COLOURS, WIDTH, canvas, frame, is_log, plain
from adam_jax.plots.panels import Curve, Panel


def heat_map(panel: Panel, curves: Mapping[str, Curve], every: int) -> Any:
    """Draws a figure of curves, by their names; zeros stand out, and what was not measured is grey.

    Args:
      panel: what it is.
      curves: the rows from the top.
      every: how many steps lie between two points.
    """
    figure = canvas(WIDTH, 1.4 + 0.2 * len(curves))
    from matplotlib import colormaps, colors  # noqa: PLC0415 - for who draws only

    table = np.full((len(curves), max(map(len, curves.values()))), math.nan)
    for row, y in zip(table, curves.values(), strict=True):
        row[: len(y)] = y
    log = is_log(panel, curves.values())
    shade = colormaps["RdBu_r" if panel.scale == "cosine" else "Blues"].with_extremes(
        bad="#d0d0d0", under=COLOURS[1], over="black"
    )
    finite = table[np.isfinite(table) & ((table > 0) | (not log))]
    low, high = {"cosine": (-1.0, 1.0), "share": (0.0, 1.0), "percent": (0.0, 1.0)}.get(
        panel.scale, (finite.min(initial=math.inf), finite.max(initial=-math.inf))
    )
    low, high = (low, high) if low < high else (0.0, 1.0)
    norm = colors.LogNorm(low, high) if log else colors.Normalize(low, high)
    shown = np.where(log & (table == 0), low / 10, table)
    axes = figure.add_subplot()
    extent = (every / 2, every * (table.shape[1] + 0.5), len(curves), 0)
    image = axes.imshow(
        shown, norm=norm, cmap=shade, aspect="auto", extent=extent, interpolation="nearest"
    )
    axes.set_yticks(np.arange(len(curves)) + 0.5, list(curves), fontsize=8)
    notes = [panel.note, "vermilion: 0" * bool(log and (table == 0).any())]
    notes.append("grey: not measured" * bool(np.isnan(table).any()))
    frame(axes, panel._replace(note="; ".join(filter(None, notes))))
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0, labelsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3 / figure.get_figheight()))
    bar.ax.yaxis.set_major_formatter(plain)
    bar.ax.tick_params(labelsize=9)
    return figure
