"""The pages of docs/ that are made: written, or with --check only named where they are stale."""

import pytest

from docs import pages


@pytest.fixture
def docs(tmp_path, monkeypatch):
    texts = {"first.md": "one – é\n", "second.md": "two\n", "third.md": "three\n"}
    made = {name: (lambda text=text: text) for name, text in texts.items()}
    monkeypatch.setattr(pages, "PAGES", made)
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    return tmp_path


def content(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_pages_are_written_and_then_they_are_current(docs, capsys):
    assert pages.main([]) == 0
    assert content(docs) == {name: page() for name, page in pages.PAGES.items()}
    assert pages.main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_check_names_what_is_stale_and_writes_nothing(docs, capsys):
    pages.main([])
    (docs / "second.md").write_text("tow\n")  # as long as it was
    (docs / "third.md").unlink()
    before = content(docs)
    assert pages.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert said == "docs/second.md, docs/third.md: not what `python -m docs.pages` makes\n"
    assert content(docs) == before


def test_a_page_that_says_it_is_made_is_made():
    said = {p.name for p in pages.DOCS.glob("*.md") if "Made by `tox -e docs`" in p.read_text()}
    assert len(said) >= 2
    assert said <= {*pages.PAGES}
