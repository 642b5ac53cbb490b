"""The colours of a race's pictures.

A picture is drawn once, in these. A page shows it in the light or in the dark, so it puts for each
colour the variable that `THEME` names; therefore no two parts that differ in the dark may share
one. `report/style.css` gives the variables their values; the light ones are these.

Lines have at least 3:1 contrast, as WCAG 2.2 (1.4.11) asks of graphics. On dark they are Okabe and
Ito's (2008). On white their orange and blue are too pale, and darker ones alone would come too
close to the others, so there all are moved: any two of them are, to those who see all colours and
to those who lack a cone (Machado et al. 2009), at least as far apart as Okabe and Ito's closest.
"""

from typing import Any

INK = "#1b1f24"  # lines of axes, text
GREY = "#555b61"  # text that matters less
GRID = "#dfe2e6"
PAPER = "#fefefe"
OTHERS = "#868b90"  # lines without a name
LOST = "#e4e6e8"  # where there is no loss
SERIES = ("#00509e", "#a63f00", "#0a9664", "#d0559f", "#bd7a00", "#4485e4", INK)

THEME = {INK: "ink", GREY: "muted", GRID: "grid", PAPER: "paper", OTHERS: "others", LOST: "lost"}
THEME |= {colour: f"series-{index + 1}" for index, colour in enumerate(SERIES[:-1])}

_MARKERS = ("o", "s", "^", "D", "v", "<", ">")
_DASHES = ("-", (0, (4, 1.2)))


def style(index: int) -> dict[str, Any]:
    """How the line of that number looks; markers and dashes tell again what colours tell."""
    return {
        "color": SERIES[index % len(SERIES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        # By turns, so that two lines on top of each other (adam and adamw) both show; there are
        # odd many colours, so a second round through them has the other dashes.
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 2,
        "markersize": 6.5,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.7,
    }
