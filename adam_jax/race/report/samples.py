"""What a trained model has to show: text, and pictures."""

import base64
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.image import imsave

from adam_jax.race.report.markup import Markup, element

_SIZE = 256  # what the longer side of a small picture is shown at, in pixels


def samples(shown: Mapping[str, str | np.ndarray]) -> Markup:
    """A figure each."""
    return element("div", *map(_sample, shown, shown.values()), class_="samples")


def _sample(caption: str, sample: str | np.ndarray) -> Markup:
    shown = _text(caption, sample) if isinstance(sample, str) else _picture(caption, sample)
    return element("figure", element("figcaption", caption), shown)


def _text(caption: str, text: str) -> Markup:
    # Can be reached by keyboard, to be scrolled.
    return element("pre", text, role="region", aria_label=caption, tabindex=0)


def _picture(caption: str, picture: np.ndarray) -> Markup:
    rows, columns = picture.shape
    scale = max(1, _SIZE // max(rows, columns))
    return element(
        "img",
        alt=f"{caption}: a picture of {columns} by {rows} pixels",
        src=f"data:image/png;base64,{base64.b64encode(_png(picture)).decode()}",
        width=columns * scale,
        height=rows * scale,
    )


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    grey = np.clip(np.nan_to_num(picture), 0, 1)
    imsave(buffer, grey, cmap="gray", vmin=0, vmax=1, format="png")
    return buffer.getvalue()
