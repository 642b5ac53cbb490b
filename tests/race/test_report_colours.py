"""The colours of the report: told from what is behind them, and from each other."""

import re
from itertools import combinations

import numpy as np
import pytest
from raced import STYLE, contrast, linear, outcome, race, themes

from adam_jax.race import colours
from adam_jax.race.report import page
from adam_jax.race.report.charts import Charts
from adam_jax.race.results import Failure

TEXT = ["ink", "muted", "link", "bad"]
LINES = ["others", "ink", *(f"series-{index}" for index in range(1, 7))]


def pale(theme):
    """What has too little contrast, with how much it has."""
    found = [("text", name, contrast(theme[name], theme["paper"]), 4.5) for name in TEXT]
    found += [("line", name, contrast(theme[name], theme["paper"]), 3) for name in LINES]
    for step in range(6):
        on = theme["on-low" if step < 3 else "on-high"]
        found += [("text", f"shade-{step}", contrast(on, theme[f"shade-{step}"]), 4.5)]
    found += [("text", "code", contrast(theme["ink"], theme["raised"]), 4.5)]
    found += [("text", "lost", contrast(theme["muted"], theme["lost"]), 4.5)]
    return [(kind, name, ratio) for kind, name, ratio, least in found if ratio < least]


@pytest.mark.parametrize("name", ["light", "dark"])
def test_colours_have_contrast(name):
    theme = themes(STYLE.read_text())[name]
    assert pale(theme) == []
    assert pale(theme | {"muted": theme["others"]}) != []
    assert pale(theme | {"series-5": theme["lost"]}) != []
    assert pale(theme | {"shade-2": theme["shade-3"]}) != []


def test_a_rule_is_written_once():
    selectors = re.findall(r"^([^\s@/].*) \{", STYLE.read_text(), re.MULTILINE)
    assert len(selectors) > 40
    assert len(selectors) == len(set(selectors))
    assert not [selector for selector in selectors if "/*" in selector or "{" in selector]


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#ff0000", "#ffffff") == pytest.approx(4.0, abs=0.005)


def test_the_light_theme_is_what_pictures_are_drawn_in():
    light = themes(STYLE.read_text())["light"] | {"paper": colours.PAPER}
    assert {name: light[name] for name in colours.THEME.values()} == {
        name: colour for colour, name in colours.THEME.items()
    }


# What those see who lack a cone, of linear red, green and blue (Machado et al. 2009, table 1).
SIGHTS = {
    "all cones": np.eye(3),
    "no long ones": [
        [0.1523, 1.0526, -0.2049],
        [0.1145, 0.7863, 0.0992],
        [-0.0039, -0.0481, 1.052],
    ],
    "no middle ones": [
        [0.3673, 0.8606, -0.228],
        [0.2801, 0.6725, 0.0474],
        [-0.0118, 0.0429, 0.9689],
    ],
    "no short ones": [
        [1.2555, -0.0767, -0.1788],
        [-0.0784, 0.9308, 0.1476],
        [0.0047, 0.6914, 0.3039],
    ],
}
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def lab(rgb):
    """CIE 1976 L*a*b* of linear sRGB, white D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def closest(palette):
    """How far apart the two are that are told worst, by who tells them worst."""
    return min(
        np.linalg.norm(lab(sight @ linear(one)) - lab(sight @ linear(other)))
        for sight in map(np.asarray, SIGHTS.values())
        for one, other in combinations(palette, 2)
    )


@pytest.mark.parametrize("name", ["light", "dark"])
def test_lines_are_told_apart_as_well_as_okabe_and_itos(name):
    theme = themes(STYLE.read_text())[name]
    palette = [theme[f"series-{index}"] for index in range(1, 7)] + [theme["ink"]]
    assert closest(palette) >= closest(OKABE_ITO)
    darker = ["#0072b2", "#d55e00", "#009e73", "#c2639a", "#bd8100", "#2e9bd6", "#1b1f24"]
    assert closest(darker) < closest(OKABE_ITO)  # which is why none is Okabe and Ito's on white


def test_an_entrant_keeps_its_colour_when_another_fails():
    first = race([outcome(name, {0.1: [1.0]}) for name in ("a", "b")])
    second = race([outcome("b", {0.1: [1.0]})], failures=(Failure("a", "out of memory"),))
    text = page([first, second], "adam-jax", {})
    curves = [svg for svg in re.findall(r"<svg.*?</svg>", text) if ">optimizer step" in svg]
    assert len(curves) == 4
    assert all("var(--series-2)" in svg for svg in curves)
    assert ["var(--series-1)" in svg for svg in curves] == [True, True, False, False]


def test_lines_of_one_picture_have_colours_of_their_own():
    names = list("abcdefghijklmn")
    charts = Charts([race([outcome(name, {0.1: [1.0]}) for name in names])])
    for shown in ("abcdef", "fghijk", "klmnab", "bdfhjl", "ghijklm"):
        styles = charts._styles(list(shown))
        assert list(styles) == list(shown)
        assert len({each["color"] for each in styles.values()}) == len(shown)


def test_ten_lines_differ_in_colour_or_dashes():
    names = list("abcdefghij")
    charts = Charts([race([outcome(name, {0.1: [1.0]}) for name in names])])
    looks = {str((s["color"], s["linestyle"])) for s in charts._styles(names).values()}
    assert len(looks) == len(names)
    assert charts._styles(names[4:5])["e"] == charts._styles(names)["e"]
