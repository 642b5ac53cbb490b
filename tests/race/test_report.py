"""The page that a race is told by: its structure, its words, its colours, and who may break it."""

import base64
import hashlib
import html
import io
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from raced import HOSTILE, RATES, STYLE, full, outcome, race, scored

from adam_jax.race import colours
from adam_jax.race.canvas import Paper
from adam_jax.race.report import command, page, profiles, versions
from adam_jax.race.results import Failure

VERSIONS = {"jax": "0.5"}
VOID = {"img", "link", "meta"}


class Read(HTMLParser):
    """A page as a list of elements, each with its attributes, its parents and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "parents": [e["tag"] for e in self._open], "text": ""}
        element |= {"attributes": dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, text):
        for element in self._open:
            element["text"] += text

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]

    def values(self, name):
        return [e["attributes"][name] for e in self.elements if name in e["attributes"]]


@pytest.fixture(scope="module")
def pages():
    """Pages by what is on them."""
    few, many = full(), full(entrants=12)
    names = [each.entrant for each in many.outcomes]
    nobody = race([], failures=[Failure(None, "`loss` failed")])
    return {
        "one": page([few], "adam-jax race line", VERSIONS),
        "several": page(
            [few, many, nobody], "adam-jax race a,b,c", VERSIONS, scored(names, ("problem",) * 2)
        ),
    }


@pytest.fixture(params=["one", "several"])
def read(request, pages):
    return Read(pages[request.param])


def test_scores_are_told_as_on_standard_output(pages):
    read = Read(pages["several"])
    headers = [each["text"] for each in read.all("th")][:5]
    assert headers[0] == "entrant"
    assert headers[3:] == ["usual learning rate", "solved"]
    assert [cell["text"] for cell in read.all("td")][:4] == ["0.83", "0.42", "0.001", "2 of 2"]
    said = " ".join(e["text"] for e in read.all("p"))
    assert "; it is over 2 of 3, without line, where nobody finished" in said
    assert "entrant_11: score " in " ".join(e["text"] for e in read.all("li"))


def test_what_is_median_is_said(pages):
    text = " ".join(e["text"] for e in Read(pages["one"]).all("p"))
    assert "Loss and test accuracy: medians of the seeds." in text


def test_ids_are_unique_and_references_lead_to_them(read):
    ids = read.values("id")
    assert len(ids) == len(set(ids))
    found = [value[1:] for value in read.values("href") if value.startswith("#")]
    found += [value[5:-1] for value in read.values("clip-path")]
    found += read.values("aria-labelledby")
    assert len(found) > 20
    assert set(found) <= set(ids)


def test_figures_say_in_words_what_they_show(read):
    for figure in read.all("figure"):
        assert "figcaption" in {e["tag"] for e in read.elements if "figure" in e["parents"]}, figure
    pictures = read.all("svg")
    assert len(pictures) >= 6
    for picture in pictures:
        given = picture["attributes"]
        assert given["role"] == "img"
        assert "entrant_0" in given["aria-label"]
        assert re.search(r"\d", given["aria-label"])
    assert all(image["attributes"]["alt"] for image in read.all("img"))
    assert len(read.all("figcaption")) == len(read.all("figure"))


def test_axes_have_labels_with_units(read):
    texts = " ".join(e["text"] for e in read.all("text"))
    for label in ("optimizer step (10 an epoch)", "training loss", "learning rate"):
        assert label in texts
    assert "\N{MICRO SIGN}s a step" in texts
    assert "bytes a parameter" in texts


def test_tables_have_captions_and_headers_with_scope(read):
    assert len(read.all("caption")) == len(read.all("table")) >= 1
    scopes = Counter(header["attributes"]["scope"] for header in read.all("th"))
    assert scopes["row"] >= 3
    assert scopes["col"] >= 10


def test_headings_leave_no_level_out(read):
    levels = [int(e["tag"][1]) for e in read.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def outside(read):
    """What a page would ask of others."""
    asked = [value for name in ("src", "href") for value in read.values(name)]
    return [value for value in asked if not value.startswith(("#", "data:"))]


def test_nothing_is_asked_of_others(read):
    assert outside(read) == []
    assert outside(Read('<img src="https://example.org/x.png">')) != []
    assert "url(" not in STYLE.read_text()
    assert "@import" not in STYLE.read_text()


def test_the_policy_allows_the_pages_own_style_and_script_alone(read):
    (policy,) = [value for value in read.values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (element,) = read.all(tag)
        digest = base64.b64encode(hashlib.sha256(element["text"].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    names = {name for element in read.elements for name in element["attributes"]}
    assert not {name for name in names if name.startswith("on")} | ({"style"} & names)


def structure(text):
    """What is in a page, less the lines and ticks of its pictures: those make room for names."""
    elements = Read(text).elements
    drawn = {element["tag"] for element in elements if "svg" in element["parents"]}
    assert drawn == {"clippath", "defs", "g", "path", "rect", "text", "use"}
    return [(e["tag"], *e["attributes"]) for e in elements if "svg" not in e["parents"]]


def written(name):
    raced = full(name, entrants=2)
    found = scored([each.entrant for each in raced.outcomes])
    return page([raced, race([])], name("adam-jax"), {name("jax"): name("0.5")}, found)


@pytest.fixture(scope="module")
def benign():
    return structure(written(str))


class TestHostile:
    """All that a user names, and what their own code says, is text."""

    def hostile(self, word):
        return f"{HOSTILE} {word}"

    def test_text_is_text(self, benign):
        text = written(self.hostile)
        assert structure(text) == benign
        shown = HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}")
        shown = shown.replace("\udcff", "\N{REPLACEMENT CHARACTER}")
        read = Read(text)
        tags = ("code", "th", "h2", "figcaption", "pre", "b", "dt", "dd", "caption", "p", "a")
        assert [tag for tag in tags if not any(shown in e["text"] for e in read.all(tag))] == []
        assert any("$x$" in element["text"] for element in read.all("text"))
        assert text.encode()

    def test_unescaped_it_would_be_more(self, benign, monkeypatch):
        monkeypatch.setattr(html, "escape", lambda text: text)
        with pytest.raises(AssertionError):
            assert structure(written(self.hostile)) == benign


PAINT = ("fill", "stroke")


def test_every_colour_of_a_picture_follows_the_theme(read):
    painted = {element["attributes"].get(name) for element in read.elements for name in PAINT}
    painted -= {None, "none"}
    assert painted <= {f"var(--{name})" for name in colours.THEME.values()}
    assert painted >= {"var(--ink)", "var(--muted)", "var(--grid)", "var(--series-1)"}


def test_the_lower_a_loss_the_stronger_its_colour(pages):
    read = Read(pages["several"])
    cells = [cell for cell in read.all("td") if "shade" in cell["attributes"].get("class", "")]
    worth = {}
    for cell in cells[-12 * len(RATES) :]:
        shade = cell["attributes"]["class"].split()[0]
        worth.setdefault(shade, []).append(float(cell["attributes"]["data-value"]))
    shades = sorted(worth)
    assert shades[0] == "shade-0"
    assert len(shades) >= 4
    assert all(max(worth[a]) <= min(worth[b]) for a, b in pairwise(shades))
    best = [cell for cell in cells if "best" in cell["attributes"]["class"]]
    assert len(best) == 3 + 12
    lost = [cell for cell in read.all("td") if cell["attributes"].get("class") == "lost"]
    assert {cell["text"] for cell in lost} == {"\N{MULTIPLICATION SIGN}"}
    assert len(lost) == 2 + 6


def test_size(pages):
    assert 50_000 < len(pages["one"]) < 150_000
    assert len(pages["several"]) < 300_000


def test_the_same_race_is_the_same_page(pages):
    assert page([full()], "adam-jax race line", VERSIONS) == pages["one"]


def test_samples(pages):
    read = Read(pages["one"])
    assert "once upon\n a time" in {element["text"] for element in read.all("pre")}
    (image,) = read.all("img")
    data = base64.b64decode(image["attributes"]["src"].removeprefix("data:image/png;base64,"))
    shown = matplotlib.image.imread(io.BytesIO(data))
    np.testing.assert_allclose(shown[..., 0], np.linspace(0, 1, 12).reshape(3, 4), atol=0.003)
    width, height = (int(image["attributes"][name]) for name in ("width", "height"))
    assert (width, height) == (256, 192)


def test_cells_are_worth_their_numbers(pages):
    read = Read(pages["one"])
    table = read.all("td")[: 3 * 9]
    cells = [cell for cell in table if cell["attributes"]["data-value"]]
    for cell in cells:
        shown = re.match(r"[\d.e+-]+", cell["text"].rstrip("%"))[0]
        worth = float(cell["attributes"]["data-value"]) * (100 if "%" in cell["text"] else 1)
        if "\N{EN DASH}" not in cell["text"]:  # a range is worth its width
            assert float(shown) == pytest.approx(worth, rel=0.05, abs=0.5)
    assert [cell["text"] for cell in table if cell not in cells] == ["never"]
    assert len(cells) == 3 * 9 - 1
    names = [header["text"] for header in read.all("th") if header["attributes"]["scope"] == "row"]
    assert names == ["entrant_0", "entrant_1", "entrant_2"] * 2


def test_races_of_every_kind_have_a_page():
    kinds = [
        [outcome("diverged", {0.1: [math.nan]})],
        [outcome("negative", {0.1: [-9.0], 1.0: [-8.0]}, start=-1.0)],
        [outcome("zero", {0.1: [0.0]}, start=0.0)],
        [outcome("huge", {0.1: [1e300]}), outcome("b" * 200, {0.1: [1e-300]})],
        # No font of Matplotlib's has this name.
        [outcome("\N{CJK UNIFIED IDEOGRAPH-4E2D}", {0.1: [1.0]}, start=math.nan)],
    ]
    read = Read(page([race(outcomes) for outcomes in kinds], "adam-jax", VERSIONS))
    assert len(read.all("svg")) == 6 * len(kinds)
    assert "steps to target" in {header["text"] for header in read.all("th")}
    assert not {"inf", "nan"} & {cell["text"] for cell in read.all("td", "th")}
    assert len([e for e in read.all("li") if "ol" in e["parents"]]) == sum(map(len, kinds))


def test_a_profile_has_a_picture_of_its_own():
    content = profiles.draw(profiles.lines(scored(["a", "b"]), ["a", "b"])[0])
    shown = matplotlib.image.imread(io.BytesIO(content))
    assert shown.shape[:2] == (825, 1350)
    assert shown[..., :3].std() > 0.05


def test_lines_that_coincide_are_told_apart():
    """Wherever they run together each has a height of its own, on all papers."""
    found = scored(["a"])
    alike = [replace(found[0], entrant=name) for name in "abcdefg"]
    drawn, _ = profiles.lines(alike, "abcdefg")
    styles = {name: colours.style(place) for place, name in enumerate("abcdefg")}
    for paper in (Paper(9.0, 4.9, titled=False), Paper(4.6, 4.1, titled=False)):
        (axes,) = profiles.figure(paper, drawn, styles).axes
        to_points = axes.transData.transform
        for place in range(len(drawn.taus)):
            ends = sorted(to_points((0, line.get_ydata()[place]))[1] for line in axes.lines)
            gaps = np.diff(ends) * 72 / axes.figure.dpi
            assert len(gaps) == 6
            assert gaps.min() > axes.lines[0].get_linewidth()
            assert ends[0] >= axes.bbox.y0 - 1


def test_how_to_run_it_again():
    given = ["race", "my problem.py", "--entrants", "sgd,adam"]
    assert command(given) == "adam-jax race 'my problem.py' --entrants sgd,adam"
    assert {"adam_jax", "jax", "optax", "Python", "device"} <= set(versions([]))
