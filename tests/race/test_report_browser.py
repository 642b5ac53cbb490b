"""The report in a real browser: Chromium, driven by Selenium.

Skipped where either is missing, unless ``ADAM_JAX_BROWSER=required``.
"""

import io
import json
import os
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from raced import full, race, scored
from small_problem import LINE

from adam_jax.race.cli import main
from adam_jax.race.report import page
from adam_jax.race.results import Failure

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if os.environ.get("ADAM_JAX_BROWSER") != "required":
    pytest.importorskip("selenium", reason="the extra `browser` brings it")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromium-driver", allow_module_level=True)

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
)
MEASURE = (Path(__file__).parent / "measure.js").read_text()
CSS, ENTER, SPACE = "css selector", "\ue007", "\ue00d"  # as WebDriver spells them
WIDTHS = (360, 1280)
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A file with a report in which there is all that there can be."""
    few, many = full(), full(lambda word: f"experiments/a_longer_{word}", entrants=12)
    names = [each.entrant for each in many.outcomes]
    races = [few, many, race([], failures=[Failure(None, "`loss` failed")])]
    file = tmp_path_factory.mktemp("report") / "report.html"
    command = f"adam-jax race a,b,c --entrants {','.join(names)}"
    file.write_text(page(races, command, {"jax": "0.5"}, scored(names)))
    return file


def opened(browser, file, width=1280, theme="light"):
    """Opens a page, and returns what was asked of whom and what the console said."""
    drain(browser)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(file.as_uri())
    return drain(browser)


def drain(browser):
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return asked, [entry["message"] for entry in browser.get_log("browser")]


def test_nothing_is_asked_of_others_and_the_console_is_silent(browser, report):
    asked, said = opened(browser, report)
    assert asked[0] == report.as_uri()
    assert [url for url in asked[1:] if not url.startswith("data:")] == []
    assert said == []


def test_the_policy_stops_what_would(browser, report, tmp_path):
    broken = tmp_path / "report.html"
    more = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "run"</script></body>'
    broken.write_text(report.read_text().replace("</body>", more))
    _, said = opened(browser, broken)
    assert len([line for line in said if "Content Security Policy" in line]) == 2
    assert browser.title == "Race: 3 problems"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_all_can_be_read(browser, report, width, theme):
    opened(browser, report, width, theme)
    found = browser.execute_script(MEASURE)
    assert found["complaints"] == []
    assert found["pictures"] == 9  # 4 and, of many, 3, and 2 profiles; of two widths one each
    assert found["measured"] > 300
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[theme]


BREAK = {
    "contrast": "h1 { color: #bbbbbb }",
    "the page is": "h1 { width: 2000px }",
    "pixels": ".chart { max-width: 200px }",
    "cut off": "svg text { letter-spacing: 1em }",
    "line": ":root { --series-1: #eeeeee }",
}


@pytest.mark.parametrize("complaint", BREAK)
def test_what_cannot_be_read_is_found(browser, report, complaint):
    opened(browser, report, 360)
    rule = {"css": BREAK[complaint]}
    browser.execute_script(
        "const sheet = new CSSStyleSheet(); sheet.replaceSync(arguments[0].css);"
        "document.adoptedStyleSheets = [sheet];",
        rule,
    )
    found = browser.execute_script(MEASURE)
    assert any(line.startswith(complaint) or complaint in line for line in found["complaints"])


def column(browser, header):
    """A table's column by its header: the button, and what the cells show."""
    table = browser.find_elements(CSS, "table.sortable")[1]  # behind the scores
    headers = table.find_elements(CSS, "thead th")
    (place,) = [i for i, each in enumerate(headers) if each.text.startswith(header)]
    rows = table.find_elements(CSS, "tbody tr")
    cells = [row.find_elements(CSS, "th, td")[place].text for row in rows]
    return headers[place], cells


def sorting(browser):
    headers = browser.find_elements(CSS, "table.sortable")[1]
    found = headers.find_elements(CSS, "th[aria-sort]")
    return [(each.text.partition("\n")[0], each.get_attribute("aria-sort")) for each in found]


class TestSorting:
    def test_by_a_click(self, browser, report):
        opened(browser, report)
        assert sorting(browser)[0][1] == "ascending"
        header, before = column(browser, "final loss")
        assert before == sorted(before)
        header.find_element(CSS, "button").click()
        _, after = column(browser, "final loss")
        assert after == before[::-1]
        assert [state for _, state in sorting(browser)] == ["descending"]

    def test_by_the_keyboard(self, browser, report):
        opened(browser, report)
        header, before = column(browser, "entrant")
        button = header.find_element(CSS, "button")
        assert button.get_attribute("type") == "button"
        for key, order in ((ENTER, before), (SPACE, before[::-1])):
            button.send_keys(key)
            assert column(browser, "entrant")[1] == order
        assert header.get_attribute("aria-sort") == "descending"

    @pytest.mark.parametrize("clicks", [1, 2])
    def test_what_has_no_number_is_last(self, browser, report, clicks):
        opened(browser, report)
        header, before = column(browser, "steps to")
        assert "never" in before
        for _ in range(clicks):
            header.find_element(CSS, "button").click()
        _, after = column(browser, "steps to")
        assert after[-1] == "never"
        numbers = [float(text) for text in after[:-1]]
        assert numbers == sorted(numbers, reverse=clicks == 2)

    def test_without_scripts_the_table_reads(self, browser, report):
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            opened(browser, report)
            assert browser.find_elements(CSS, "th button") == []
            header, cells = column(browser, "final loss")
            assert header.text == "final loss"
            assert len(cells) == 3
        finally:
            browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_table_that_goes_on_says_so_and_keeps_its_names(browser, report):
    """On a telephone: a shadow at its right, until that is scrolled to."""
    opened(browser, report, 500)
    table = browser.find_elements(CSS, ".scroll")[1]
    name = table.find_element(CSS, "tbody th")
    wide = "return arguments[0].scrollWidth > arguments[0].clientWidth"
    assert browser.execute_script(wide, table)
    assert "local, scroll" in table.value_of_css_property("background-attachment")
    before, shadow = name.rect["x"], table.screenshot_as_png
    browser.execute_script("arguments[0].scrollLeft = 1e4", table)
    assert name.rect["x"] == before
    edges = [edge(picture) for picture in (shadow, table.screenshot_as_png)]
    assert edges[0] < 0.75
    assert edges[1] > 0.95


def edge(png):
    """How light a picture is at its right."""
    column = matplotlib.image.imread(io.BytesIO(png))[:, -2, :3]
    return np.median(column)


def test_long_samples_scroll_by_keyboard(browser, report):
    opened(browser, report)
    browser.execute_script("document.querySelector('.samples pre').append('a line\\n'.repeat(99))")
    sample = browser.find_element(CSS, ".samples pre")
    assert sample.size["height"] < 400
    sample.send_keys("\ue00e")  # page down
    assert browser.switch_to.active_element == sample


def test_the_report_of_a_race(browser, tmp_path):
    path = tmp_path / "line.py"
    path.write_text(LINE)
    asked = ["--entrants", "sgd,adam", "--seeds", "2", "--out", str(tmp_path / "out")]
    assert main(["race", str(path), *asked]) == 0
    asked, said = opened(browser, tmp_path / "out" / "report.html", 360)
    assert [url for url in asked[1:] if not url.startswith("data:")] == said == []
    assert browser.execute_script(MEASURE)["complaints"] == []
    rows = browser.find_elements(CSS, "table.sortable")[0].find_elements(CSS, "tbody th")
    assert {row.text for row in rows} == {"sgd", "adam"}


def test_tables_scroll_by_themselves_and_by_keyboard(browser, report):
    opened(browser, report, 360)
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(each => "
        "each.scrollWidth > each.clientWidth).map(each => each.tabIndex)"
    )
    assert len(wide) >= 2
    assert set(wide) == {0}


def test_who_cannot_see_is_told(browser, report):
    opened(browser, report)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = {}
    for node in tree:
        if not node["ignored"]:
            role = node["role"]["value"]
            names.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert len(names["image"]) == 9 + 2  # pictures that are seen, and samples
    assert all(len(name) > 20 for name in names["image"])
    assert len(names["table"]) == 5
    assert all(names["table"])
    assert all(names["columnheader"])
    assert all(names["button"])
    assert "final loss" in names["button"]


def test_nothing_moves(browser, report):
    opened(browser, report)
    assert browser.execute_script("return document.getAnimations().length") == 0
    moving = "return [...document.querySelectorAll('body *')].filter(each => "
    moving += "parseFloat(getComputedStyle(each).transitionDuration) > 0).length"
    assert browser.execute_script(moving) == 0
