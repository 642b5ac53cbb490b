"""HTML that cannot be mistaken for text, nor text for HTML."""

import html
import re
from collections.abc import Iterable

# What no page may hold: control characters, also those that turn text around, and halves of
# characters.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_END = re.compile("\r\n?")
_VOID = {"img"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Any text as HTML that shows it, inside an element or a quoted attribute.

    Example:
      >>> escaped("<b> & 'c'")
      '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    lines = _LINE_END.sub("\n", str(text))
    return Markup(html.escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", lines)))


def joined(parts: Iterable[str]) -> Markup:
    """The parts in one, those escaped that are not HTML."""
    return Markup("".join(part if isinstance(part, Markup) else escaped(part) for part in parts))


def element(tag: str, *content: str, **attributes: object) -> Markup:
    """An element; an underscore in an attribute's name is a hyphen, one behind it is none.

    Example:
      >>> element("p", "1 < 2", class_="a b", hidden=None)
      '<p class="a b">1 &lt; 2</p>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    end = "" if tag in _VOID else f"{joined(content)}</{tag}>"
    return Markup(f"<{tag}{given}>{end}")
