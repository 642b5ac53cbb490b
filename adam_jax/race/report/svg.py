"""A figure as SVG inside of a page: in the page's colours and font, with nothing that it forbids.

Matplotlib writes a file of its own: with a style sheet, which would be the whole page's, styles in
attributes, which the page's content policy refuses, and ids, which two figures share. Here styles
become plain attributes, ids are prefixed, and the colours of `colours.THEME` become the variables
that the page gives another value in the dark.
"""

import io
import re
from collections.abc import Container, Iterator
from typing import Any
from xml.etree import ElementTree as Xml

from adam_jax.race.colours import THEME
from adam_jax.race.report.markup import Markup, escaped

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_DROPPED = {f"{_SVG}metadata", f"{_SVG}style"}
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
# Older versions write ``font: bold 9px 'DejaVu Sans', ...``.
_FONT = re.compile(r"(?:(?P<weight>bold) )?(?P<size>[\d.]+px) ")


def inline(figure: Any, prefix: str, label: str, kind: str) -> Markup:
    """The figure as an element.

    Args:
      figure: Matplotlib's.
      prefix: what its ids begin with; no other figure's on the page may.
      label: what it shows, in words.
      kind: its class.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = Xml.fromstring(buffer.getvalue())
    used = {element.get(_LINK, "#")[1:] for element in root.iter()}
    used |= {element.get("clip-path", "url(#)")[5:-1] for element in root.iter()}
    content = (_written(child, prefix, used) for child in root if child.tag not in _DROPPED)
    # The file's style sheet in attributes, which its elements inherit and overrule.
    lines = 'stroke-linejoin="round" stroke-linecap="butt"'
    return Markup(
        f'<svg class="{escaped(kind)}" viewBox="{root.attrib["viewBox"]}" {lines} role="img" '
        f'aria-label="{escaped(label)}">{"".join(content)}</svg>\n'
    )


def _written(element: Xml.Element, prefix: str, used: Container[str]) -> str:
    tag = element.tag.removeprefix(_SVG)
    children = [child for child in element if child.tag not in _DROPPED]
    content = "".join(_written(child, prefix, used) for child in children)
    content += escaped((element.text or "").strip()) if tag == "text" else ""
    attributes = dict(_attributes(element, prefix, used))
    if tag in ("g", "defs") and not content:
        return ""
    if tag == "g" and not attributes:
        return content
    written = "".join(f' {name}="{escaped(value)}"' for name, value in attributes.items())
    return f"<{tag}{written}>{content}</{tag}>" if content else f"<{tag}{written}/>"


def _attributes(
    element: Xml.Element, prefix: str, used: Container[str]
) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        if name == "id":
            if value in used:
                yield "id", prefix + value
        elif name == _LINK:
            yield "href", f"#{prefix}{value[1:]}"
        elif name == "clip-path":
            yield name, f"url(#{prefix}{value[5:-1]})"
        elif name == "style":
            yield from _presented(value)
        elif not value.startswith("rotate(-0 "):
            yield name, _LONG_NUMBER.sub(_shorter, " ".join(value.split()))


def _presented(style: str) -> Iterator[tuple[str, str]]:
    """A style as attributes, in the page's colours, and without the font, which is the page's."""
    for declaration in style.split("; "):
        name, _, value = declaration.partition(": ")
        if name == "font":
            font = _FONT.match(value)
            yield "font-size", font["size"] if font else "10px"
            if font and font["weight"]:
                yield "font-weight", font["weight"]
        elif name != "font-family":
            yield name, f"var(--{THEME[value]})" if value in THEME else value


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
