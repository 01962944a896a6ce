"""docs/protocols.md has every key of a protocol, and says what each means."""

import dataclasses
import re
from pathlib import Path

from docs import keys
from flatbench.protocols import reading

PAGE = Path(__file__).parents[1] / "docs" / "protocols.md"


def test_the_page_is_the_one_that_the_schema_makes():
    assert PAGE.read_text() == keys.page(), "tox -e docs"


def test_every_key_is_there_with_what_it_means():
    for _, cls, left_out in keys.TABLES:
        says = keys.meanings(cls)
        for f in dataclasses.fields(cls):
            assert len(says[f.name]) > 10 or f.name in left_out, f"{cls.__name__}.{f.name}"
            if f.name not in left_out:
                assert f"| `{f.name}`" in keys.page()


def test_every_table_of_a_file_is_there():
    headings = re.findall(r"^## `?\[?([a-z]+)", keys.page(), flags=re.M)
    assert {*reading.TOP_LEVEL} - {"seeds", "description", "compare_with", "against"} <= {*headings}
    assert {"seeds", "description", "compare_with"} <= {*keys.meanings(keys.Protocol)}
    for key in (*reading.PERTURBATION, "base", "perturbation", "architectures"):
        assert f"`{key}" in keys.page()
