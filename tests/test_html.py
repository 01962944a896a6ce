"""The HTML page: its text by the standard parser, its behaviour in a real browser."""

import dataclasses
import os
import shutil
from html.parser import HTMLParser

import pytest

from flatbench.report import render
from tests.synthetic import grid, record

HOSTILE = "<script>document.title='x'</script>\"'|\n\ud800"


def records():
    made = [dataclasses.replace(r, train_accuracy=99.0) for r in grid(epochs=4)]
    made += [record(HOSTILE, "vgg16", s, status="failed", reason=HOSTILE) for s in range(2)]
    return made


class Outline(HTMLParser):
    """Collects the tags, and checks that what is opened is closed in order."""

    VOID = ("meta", "link", "img")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page():
    return render(records(), "html")


def test_page_is_well_formed_and_needs_nothing_else(page):
    outline = Outline(page)
    assert outline.tags[0][0] == "html"
    assert outline.named("html")[0]["lang"] == "en"
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in outline.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith(("data:", "#"))
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
    page.encode()
    (policy,) = (a["content"] for a in outline.named("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; ")


def test_strings_from_records_are_text(page):
    outline = Outline(page)
    assert len(outline.named("script")) == 1  # the page's own
    assert "&lt;script&gt;document.title=" in page
    assert "\\n\\ud800" in page


def test_figures_have_words_and_tables_have_heads(page):
    outline = Outline(page)
    assert len(outline.named("img")) == 3
    assert all(len(attrs["alt"]) > 20 for attrs in outline.named("img"))
    assert all(attrs["src"].startswith("data:image/svg+xml") for attrs in outline.named("img"))
    assert {attrs["scope"] for attrs in outline.named("th")} == {"col", "row"}
    assert "Kendall&#39;s τ: +" in page


def test_every_run_has_its_curves(page):
    assert "Every run (26)" in page
    assert page.count("<polyline") == 2 * 24


def test_several_protocols_get_a_list_to_jump_by(page):
    assert "<nav" not in page
    other = grid(protocol="mine", provenance={"common_hash": "z"})
    both = render([*records(), *other], "html")
    hrefs = [attrs["href"] for attrs in Outline(both).named("a")]
    assert hrefs == ["#protocol-1", "#protocol-2"]


def required():
    """Whether a browser test that can't run is a failure: in CI it is."""
    return os.environ.get("CI") == "true" or os.environ.get("FLATBENCH_BROWSER") == "required"


def without_browser(reason):
    (pytest.fail if required() else pytest.skip)(reason)


@pytest.fixture(scope="module")
def browser():
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        without_browser("selenium is not installed")
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if driver is None or binary is None:
        without_browser("no Chromium with its chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options, Service(driver))
    yield running
    running.quit()


@pytest.fixture
def opened(browser, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    browser.get_log("browser")
    browser.get(path.as_uri())
    return browser


def column(browser, table, number):
    return browser.execute_script(
        "return [...document.querySelectorAll('table')[arguments[0]].tBodies[0].rows]"
        ".map(row => row.cells[arguments[1]].textContent.trim())",
        table,
        number,
    )


def test_browser_renders_without_a_complaint_and_runs_no_foreign_script(opened):
    assert opened.title == "flatbench: digits"
    assert opened.get_log("browser") == []
    sizes = opened.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(sizes) == 3
    assert min(sizes) > 100
    assert opened.execute_script("return document.querySelectorAll('script').length") == 1


def test_browser_refuses_a_script_that_got_through(browser, page, tmp_path):
    """The policy holds even if an escape were forgotten."""
    path = tmp_path / "report.html"
    attack = "<script>document.title='x'</script><img src='https://example.com/x.png'>"
    path.write_text(page.replace("<main>", f"<main>{attack}"), encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.title == "flatbench: digits"
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert len(complaints) == 2
    assert all("Content Security Policy" in message for message in complaints)


def test_clicking_a_head_sorts_by_number_and_back_and_says_so(opened):
    from selenium.webdriver.common.by import By

    button = opened.find_elements(By.CSS_SELECTOR, "table:first-of-type thead button")[1]
    before = column(opened, 0, 1)

    def value(text):
        return float(text.split(" ")[0]) if "±" in text else None

    numbers = sorted(v for text in before if (v := value(text)) is not None)
    button.click()
    assert [value(t) for t in column(opened, 0, 1)] == [*numbers, None]
    head = button.find_element(By.XPATH, "..")
    assert head.get_attribute("aria-sort") == "ascending"
    assert opened.find_element(By.ID, "said").text == "Sorted by resnet18, ascending"
    button.click()
    assert [value(t) for t in column(opened, 0, 1)] == [*numbers[::-1], None]
    assert head.get_attribute("aria-sort") == "descending"
    other = opened.find_elements(By.CSS_SELECTOR, "table:first-of-type thead button")[0]
    other.click()
    assert column(opened, 0, 0) == sorted(column(opened, 0, 0))
    assert head.get_attribute("aria-sort") is None


def test_the_keyboard_alone_sorts_and_scrolls(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def focused():
        return opened.switch_to.active_element

    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert focused().get_attribute("role") == "region"  # a wide table scrolls by arrow keys
    for _ in range(2):
        focused().send_keys(Keys.TAB)
    assert focused().tag_name == "button"
    assert focused().text == "resnet18"
    focused().send_keys(Keys.ENTER)
    assert focused().find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    focused().send_keys(Keys.SPACE)
    assert focused().find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", [360, 1200])
def test_a_phone_need_not_scroll_the_page_sideways(opened, width):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": width < 800},
    )
    opened.execute_script("document.querySelector('details').open = true")
    page_width = opened.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= width
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('main p, main li, td')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


def test_a_screen_reader_gets_names_for_tables_and_buttons(opened):
    opened.execute_script("document.querySelectorAll('thead button')[1].click()")
    tree = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]

    def names(role):
        return [
            node.get("name", {}).get("value")
            for node in tree
            if node.get("role", {}).get("value") == role and not node["ignored"]
        ]

    assert all(names("region"))
    assert any(name.startswith("Test accuracy (%)") for name in names("region"))
    assert {"optimizer", "resnet18", "vgg16"} <= set(names("button"))
    assert not any(set(name) & set("↑↓↕") for name in names("button"))  # drawn, not spoken
    assert all(names("image"))
    assert len(names("columnheader")) > 3
    assert "main" in {node.get("role", {}).get("value") for node in tree}


@pytest.mark.parametrize(
    ("variables", "outcome"),
    [
        ({}, pytest.skip.Exception),
        ({"CI": "true"}, pytest.fail.Exception),
        ({"FLATBENCH_BROWSER": "required"}, pytest.fail.Exception),
    ],
)
def test_without_a_browser_ci_fails(monkeypatch, variables, outcome):
    for name in ("CI", "FLATBENCH_BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(outcome, match="none here"):
        without_browser("none here")
