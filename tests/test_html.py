"""The HTML page: its text by the standard parser, its behaviour in a real browser."""

import dataclasses
import os
import shutil
from html.parser import HTMLParser

import pytest

from flatbench.report import render, style
from tests.synthetic import grid, on_both_terms, record

HOSTILE = "<script>document.title='x'</script>\"'|\n\ud800"


FIGURES = 11  # gains, outcome against two measures, cost, price, two curves, the gap against four


def records():
    made = on_both_terms(4)
    lost = {"status": "diverged", "reason": "x", "test_accuracy": None, "sharpness": {}}
    of_it = made.index(next(r for r in made if r.id == "digits/vgg16/sgd+sam/seed3"))
    made[of_it] = dataclasses.replace(made[of_it], **lost)  # its verdict has a reason: a long one
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
    assert len(outline.named("img")) == FIGURES
    assert all(len(attrs["alt"]) > 20 for attrs in outline.named("img"))
    assert all(attrs["src"].startswith("data:image/svg+xml") for attrs in outline.named("img"))
    assert {attrs["scope"] for attrs in outline.named("th")} == {"col", "row"}
    assert "Kendall&#39;s τ: +" in page


def test_every_run_has_its_curves(page):
    assert "Every run (42)" in page
    assert page.count("<polyline") == 2 * 40


def test_several_protocols_get_a_list_to_jump_by(page):
    assert 'aria-label="Protocols"' not in page
    one = {"seeds": [0], "means": {"sgd": 90.0}}
    both = render([*grid(**one), *grid(**one, protocol="mine")], "html")
    hrefs = [attrs["href"] for attrs in Outline(both).named("a")]
    assert hrefs[:2] == ["#protocol-1", "#protocol-2"]


def test_the_contents_lead_to_every_table_and_fold(page):
    outline = Outline(page)
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    hrefs = [attrs["href"].removeprefix("#") for attrs in outline.named("a")]
    assert set(hrefs) <= set(ids)
    folds = [attrs["id"] for attrs in outline.named("details")]
    assert set(folds) <= set(hrefs)
    assert len(folds) == 6
    assert "open" not in {name for attrs in outline.named("details") for name in attrs}


def test_the_answer_comes_before_all_else(page):
    places = [
        page.index(part)
        for part in (
            *("At equal epochs:", "At equal gradients:", "Flatness at equal epochs", "</figure>"),
            *("Contents of", "Test accuracy (%): digits", "Sharpness on resnet18: ", "<details"),
        )
    ]
    assert places == sorted(places)


def test_the_page_has_the_papers_and_inks_of_its_figures(page):
    for light, dark in style.DARK.items():
        assert page.count(light) >= 1
        assert page.count(dark) >= 1


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
    assert len(sizes) == FIGURES
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
    by_name = column(opened, 0, 0)
    assert by_name[1:4] == ["adam", "adam+sam", "sgd"]
    other.click()
    assert column(opened, 0, 0) == by_name[::-1]
    other.click()
    assert head.get_attribute("aria-sort") is None


def test_the_keyboard_alone_sorts_and_scrolls(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def focused():
        return opened.switch_to.active_element

    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    for _ in range(40):  # past what scrolls and the contents
        if (focused().get_attribute("aria-labelledby") or "").endswith("-table-1"):
            break
        focused().send_keys(Keys.TAB)
    assert focused().get_attribute("role") == "region"  # a wide table scrolls by arrow keys
    for _ in range(2):
        focused().send_keys(Keys.TAB)
    assert focused().tag_name == "button"
    assert focused().text == "resnet18"
    focused().send_keys(Keys.ENTER)
    assert focused().find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    focused().send_keys(Keys.SPACE)
    assert focused().find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"


def test_a_link_to_what_is_folded_away_unfolds_it(opened):
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = opened.execute_script(folded)
    opened.execute_script("document.querySelector('nav a[href*=fold-3]').click()")
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    assert opened.execute_script(folded) == before - 1
    assert opened.execute_script("return document.querySelector('details:target').open")


# Every run of text with its box and colours; what lies in a region that scrolls may be cut by it.
TEXTS = """
const parse = (c) => {
  const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number);
  return [r, g, b, a];
};
const over = ([r, g, b, a], under) =>
  [r, g, b].map((v, i) => a * v + (1 - a) * under[i]).concat(1);
const behind = (e) => {
  if (!e) return [255, 255, 255, 1];
  const own = parse(getComputedStyle(e).backgroundColor);
  return own[3] === 1 ? own : over(own, behind(e.parentElement));
};
const light = (c) => c.slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode()); ) {
  const parent = node.parentElement;
  if (!node.data.trim() || !parent.checkVisibility() || parent.closest(".unseen, script")) continue;
  const ground = behind(parent);
  const opacity = (e) => (e ? Number(getComputedStyle(e).opacity) * opacity(e.parentElement) : 1);
  const ink = parse(getComputedStyle(parent).color);
  ink[3] *= opacity(parent);
  const [a, b] = [light(over(ink, ground)), light(ground)].sort((x, y) => y - x);
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const { left, right, top, bottom } of range.getClientRects())
    found.push({ text: node.data.trim().slice(0, 60), left, right, top: top + scrollY,
      bottom: bottom + scrollY, contrast: a / b, scrolls: !!parent.closest(".scroll") });
}
return found;
"""


def overlapping(texts):
    """Pairs of texts whose boxes share more than a pixel both ways."""
    found, near = [], []
    for text in sorted(texts, key=lambda t: t["top"]):
        near = [other for other in near if other["bottom"] - 1 > text["top"]]
        found += [
            (other["text"], text["text"])
            for other in near
            if min(other["right"], text["right"]) - max(other["left"], text["left"]) > 1
        ]
        near.append(text)
    return found


def emulate(browser, width, height, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800},
    )


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (420, 860)])
def test_page_fits_its_window_and_opens_with_the_answer(opened, width, height):
    emulate(opened, width, height)
    opened.refresh()
    answer = "return document.querySelector('.answer').getBoundingClientRect()"
    assert 0 < opened.execute_script(answer)["bottom"] <= height
    assert len(opened.execute_script("return document.querySelectorAll('.answer li')")) == 6
    opened.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    opened.execute_async_script("setTimeout(arguments[0], 100)")  # for the hints to be told
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    texts = opened.execute_script(TEXTS)
    assert len(texts) > 300
    cut = [t for t in texts if not t["scrolls"] and not 0 <= t["left"] <= t["right"] <= width]
    assert cut == []
    assert overlapping([t for t in texts if not t["scrolls"]]) == []
    hints = opened.execute_script(
        "return [...document.querySelectorAll('.scroll')].map((e) => "
        "[e.scrollWidth > e.clientWidth, e.previousElementSibling.checkVisibility()])"
    )
    assert [wide for wide, _ in hints] == [told for _, told in hints]
    if width < 800:
        assert any(wide for wide, _ in hints)
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('main p, main li, td')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes(opened, scheme):
    emulate(opened, 1280, 800, scheme)
    opened.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    low = {t["text"]: t["contrast"] for t in opened.execute_script(TEXTS) if t["contrast"] < 4.5}
    assert low == {}
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    wanted = style.PAPER if scheme == "light" else style.DARK[style.PAPER]
    assert paper == f"rgb({', '.join(str(int(wanted[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_follow_the_colour_scheme(opened, scheme):
    """A figure's corner is the page's paper, and its darkest or lightest point the page's ink."""
    emulate(opened, 1280, 800, scheme)
    opened.refresh()  # an image may have been drawn in the other scheme
    pixels = opened.execute_async_script(
        """
        const image = document.querySelector("figure img");
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        image.decode().then(() => {
          context.drawImage(image, 0, 0);
          const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
          const lights = [];
          for (let i = 0; i < data.length; i += 4)
            lights.push((data[i] + data[i + 1] + data[i + 2]) / 3);
          arguments[0]([lights[0], Math.min(...lights), Math.max(...lights)]);
        });
        """
    )
    corner, low, high = pixels
    if scheme == "light":
        assert corner == high == 255
        assert low < 60
    else:
        assert low == pytest.approx(corner, abs=2)
        assert corner < 40
        assert high > 200


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
