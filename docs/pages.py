"""The pages that are made, not written: ``python -m docs.pages [--check]`` (``tox -e docs``).

With ``--check`` nothing is written, and a page that is not what the committed records and the code
make is named; exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from docs import answers, keys, leaderboard, rates
from flatbench.files import write_atomically
from flatbench.records.reading import read

DOCS = Path(__file__).parent
RECORDS = DOCS.parent / "results" / "digits" / "baseline.json.gz"
PAGES: dict[str, Callable[[], str]] = {
    "protocols.md": keys.page,
    "answers.md": answers.page,
    "leaderboard.md": leaderboard.page,
    "gate.md": lambda: rates.page(read(RECORDS)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make every page, or say which of them are not what would be made; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    stale = []
    for name, page in PAGES.items():
        made, path = page().encode(), DOCS / name
        if not check:
            write_atomically(path, made)
        elif not path.exists() or path.read_bytes() != made:
            stale.append(f"docs/{name}")
    if stale:
        print(f"{', '.join(stale)}: not what `python -m docs.pages` makes", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
