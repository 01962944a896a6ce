"""The documentation as a site: it builds without a warning, and needs nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

import flatbench.optim
import flatbench.sharpness
from docs.markup import as_myst
from tests.test_html import browser  # noqa: F401 - a fixture

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]
REPORTS = sorted(path.parent.name for path in ROOT.glob("results/*/report.md"))
# what a page fetches when it is opened: an element and the attribute that names it
FETCHED = [
    *(("img", name) for name in ("src", "srcset")),
    *(("script", "src"), ("iframe", "src"), ("source", "srcset"), ("source", "src")),
    *(("object", "data"), ("embed", "src"), ("video", "src"), ("audio", "src")),
]


def command():
    """What tox runs, without its folders."""
    (line,) = re.findall(
        r"-m (sphinx (?:.|\\\n)*?) \. build/site$", (ROOT / "tox.ini").read_text(), re.MULTILINE
    )
    words = line.replace("\\\n", " ").split()
    at = words.index("-d")
    del words[at : at + 2]
    return [sys.executable, "-m", *words]


def build(source, folder, *options):
    return subprocess.run(
        [*command(), *options, "-d", str(folder / "doctrees"), str(source), str(folder / "site")],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "site"


@pytest.fixture(scope="session")
def pages(site):
    """Every page's content, by its path."""
    found = site.rglob("*.html")
    return {path: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in found}


def target(path, link):
    """The file that a link on a page leads to, and the anchor in it."""
    parts = urlsplit(link)
    file = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    return file, unquote(parts.fragment)


def links(path, page):
    """What the links of a page lead to within the site."""
    for element in page.find_all("a", href=True):
        if not urlsplit(element["href"]).scheme:
            yield target(path, element["href"])


def test_every_page_can_be_reached_from_the_first(site, pages):
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        path = waiting.pop()
        if path in reached or path not in pages:
            continue
        reached.add(path)
        waiting += [file for file, _ in links(path, pages[path])]
    assert len(reached) > 25
    assert {*pages} - reached == {site / "search.html"}  # by the field above the contents
    for name in REPORTS:
        assert site / "results" / name / "report.html" in reached


def test_every_link_and_anchor_is_there(pages):
    ids = {path: {e["id"] for e in page.find_all(id=True)} for path, page in pages.items()}
    missing, checked = [], 0
    for path, page in pages.items():
        for file, anchor in links(path, page):
            checked += 1
            if not file.is_file():
                missing.append(f"{path.name}: {file}")
            elif anchor and anchor not in ids.get(file, {anchor}):
                missing.append(f"{path.name}: {file.name}#{anchor}")
    assert checked > 1000
    assert missing == []


def test_a_page_loads_nothing_from_another_host(site, pages):
    loaded = []
    for path, page in pages.items():
        for tag, name in FETCHED:
            loaded += [(path, e[name]) for e in page.find_all(tag, attrs={name: True})]
        sheets = [e for e in page.find_all("link") if e["rel"] not in (["next"], ["prev"])]
        loaded += [(path, element["href"]) for element in sheets]
        for style in page.find_all("style"):
            assert "url(" not in style.text
    assert any(link.endswith(".svg") for _, link in loaded)
    for path, link in loaded:
        if link.startswith("data:"):
            continue
        parts = urlsplit(link)
        assert not parts.scheme
        assert not parts.netloc
        assert target(path, parts.path)[0].is_file(), f"{path}: {link}"
    for path in site.rglob("*.css"):
        text = path.read_text("utf-8")
        assert re.findall(r"url\([\"']?(?!data:)\w+:|url\([\"']?//|@import", text) == [], path


def test_a_page_has_one_heading_and_a_title(site, pages):
    for path, page in pages.items():
        assert page.title.text.strip(), path
        if path not in (site / "index.html", site / "search.html"):
            assert len(page.find_all("h1")) == 1, path


def test_formulas_are_drawn_by_the_browser(site, pages):
    page = pages[site / "docs" / "sharpness.html"]
    assert len(page.find_all("math")) > 20
    assert "$" not in page.find("article").text
    assert [p for p in pages.values() for s in p.find_all("script") if "mathjax" in str(s)] == []


def test_the_api_has_every_public_name(site, pages):
    page = pages[site / "docs" / "api.html"]
    for package in (flatbench.optim, flatbench.sharpness):
        for name in package.__all__:
            assert page.find(id=f"{package.__name__}.{name}") is not None, name
    assert page.find(id="flatbench.sharpness.ascent_sharpness").text.count("rho") > 0


# --- reports


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_whole(name, site, pages):
    """Its tables and figures are all there, and the folds hold what they held."""
    page = pages[site / "results" / name / "report.html"].find("article")
    text = (ROOT / "results" / name / "report.md").read_text("utf-8")
    assert len(page.find_all("table")) == len(re.findall(r"^\|:?-", text, re.MULTILINE))
    assert len(page.find_all("img")) == len(re.findall(r"^!\[", text, re.MULTILINE))
    folds = re.findall(r"<summary>(.*?)</summary>(.*?)\n</details>", text, re.DOTALL)
    made = page.find_all("details")
    assert [fold.summary.text for fold in made] == [title for title, _ in folds]
    for fold, (_, held) in zip(made, folds, strict=True):
        assert len(fold.find_all("table")) == len(re.findall(r"^\|:?-", held, re.MULTILINE))
        assert len(fold.find_all("img")) == len(re.findall(r"^!\[", held, re.MULTILINE))
    assert "</details>" not in page.text
    assert "<a id=" not in page.text


def test_a_fold_and_an_anchor_become_mysts():
    text = '<a id="x-3"></a>\n\n<details><summary>All of it</summary>\n\n### Part\n\n</details>\n'
    assert as_myst(text) == "(x-3)=\n\n::::{fold} All of it\n\n### Part\n\n::::\n"


# --- a build that must fail


BREAKS = {
    "See [the moon](moon.md).": "moon.md",
    "See [what is not there](speed.md#what-is-not-there).": "what-is-not-there",
    "![a figure](../results/digits/figures/none.svg)": "none.svg",
    "{py:func}`flatbench.sharpness.blunt`": "flatbench.sharpness.blunt",
}


def test_a_broken_link_ends_the_build(tmp_path):
    source = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "local", "records", "*.png", "*.npz", "*.gz")
    for name in ("docs", "results", ".github"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    (source / "flatbench").symlink_to(ROOT / "flatbench")
    with (source / "docs" / "start.md").open("a", encoding="utf-8") as file:
        file.write("\n\n" + "\n\n".join(BREAKS) + "\n")
    done = build(source, tmp_path, "-b", "dummy")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert len(lines) == len(BREAKS)
    for what in BREAKS.values():
        assert any("docs/start.md" in line and what in line for line in lines), what


# --- in a browser


def test_no_page_is_wider_than_a_telephone(site, pages, browser):  # noqa: F811
    """A wide table scrolls in itself."""
    width = 390
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        for path in pages:
            if path != site / "index.html":
                browser.get(path.as_uri())
                # the theme would scroll the content, contents and heading with it
                wide = browser.execute_script(
                    "return [document.documentElement, document.querySelector('.content')]"
                    ".filter(e => e && e.scrollWidth > e.clientWidth).map(e => e.tagName)"
                )
                assert wide == [], path
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("system", ["light", "dark"])
def test_a_figure_follows_the_scheme_that_the_reader_has_chosen(system, site, browser):  # noqa: F811
    media = {"features": [{"name": "prefers-color-scheme", "value": system}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        browser.get((site / "results" / "digits" / "report.html").as_uri())
        for theme, scheme in (("auto", system), ("light", "light"), ("dark", "dark")):
            found = browser.execute_script(
                "document.body.dataset.theme = arguments[0];"
                "return getComputedStyle(document.querySelector('article img')).colorScheme",
                theme,
            )
            assert found == scheme
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_leaderboard_sorts_by_any_column(site, browser):  # noqa: F811
    browser.get((site / "docs" / "leaderboard.html").as_uri())

    def first_table():
        return browser.execute_script(
            "return [...document.querySelector('section#leaderboard table').tBodies[0].rows]"
            ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
        )

    def click(column):
        browser.execute_script(
            "document.querySelectorAll('section#leaderboard table')[0].tHead.rows[0]"
            ".cells[arguments[0]].querySelector('button').click()",
            column,
        )

    def numbers(column):
        return [float(row[column].split(" ± ")[0].split("–")[0]) for row in first_table()]

    whole = first_table()
    assert len(whole) > 10
    for column in (2, 1, 4):  # accuracy, place, the largest eigenvalue
        click(column)
        rising = numbers(column)
        assert rising == sorted(rising)
        click(column)
        assert numbers(column) == sorted(rising, reverse=True)
    click(0)
    names = [row[0] for row in first_table()]
    assert names[0] < names[-1]
    assert sorted(first_table()) == sorted(whole)  # no row is lost
