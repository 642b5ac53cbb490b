"""English text that every Python brings along, as numbers: what the text problems learn.

It is the prose of Python's language reference, as ``help()`` shows it (``pydoc_data/topics.py``,
under the PSF licence): its paragraphs of plain English, without code, grammar and markup. From one
release of Python to the next some sentences change, of about 67,000 characters.
"""

import re
from functools import cache
from pydoc_data.topics import topics

import numpy as np

ALPHABET = "\n '(),-.:;ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_SHORTEST = 100  # of a paragraph, in characters; what is shorter is mostly headings and lists
_MARKUP = re.compile(r'["*`]')
_PROSE = re.compile(rf"[A-Z][{re.escape(ALPHABET)}]+\.")


@cache
def text() -> str:
    """The paragraphs, each on a line of its own.

    Example:
      >>> set(text()) <= set(ALPHABET), len(text()) > 60_000
      (True, True)
    """
    sections = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = re.split(r"\n\s*\n", _MARKUP.sub("", sections))
    lines = (" ".join(paragraph.split()) for paragraph in paragraphs)
    prose = (line for line in lines if len(line) >= _SHORTEST and _PROSE.fullmatch(line))
    return "\n".join(dict.fromkeys(prose))  # the reference repeats some of them


def windows(length: int) -> tuple[np.ndarray, np.ndarray]:
    """All of the text in pieces of `length` + 1, each from the last character of the one before.

    Returns:
      The places of their characters in `ALPHABET`, int32: the first nine tenths to train on, and
      the rest to test with.
    """
    ids = encoded(text())
    starts = np.arange(0, len(ids) - length, length)
    pieces = ids[starts[:, None] + np.arange(length + 1)]
    cut = len(pieces) * 9 // 10
    return pieces[:cut], pieces[cut:]


def encoded(line: str) -> np.ndarray:
    """The places of a text's characters in `ALPHABET`, int32."""
    return np.array([ALPHABET.index(character) for character in line], np.int32)


def decoded(ids: np.ndarray) -> str:
    """The text of characters' places in `ALPHABET`."""
    return "".join(ALPHABET[place] for place in np.asarray(ids).tolist())
