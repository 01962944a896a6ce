"""Tables are read into dataclasses, and every departure is one line that says what it must be."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatbench.errors import UsageError
from flatbench.protocols.schema import Check, Reader, quoted, shown


@dataclass(frozen=True)
class Point:
    given: str
    x: Annotated[float, Check(lambda x: x > 0, "a number above 0")]
    n: int = 1
    flag: bool = False
    name: str = ""
    kind: Literal["a", "b"] = "a"
    version: Literal[1] = 1
    pair: Annotated[tuple[int, ...], Check(lambda xs: len(xs) == 2, "two whole numbers")] = (0, 0)
    kinds: tuple[Literal["a", "b"], ...] = ()
    maybe: Annotated[float, Check(lambda x: x >= 0, "a number of at least 0")] | None = None
    by_name: dict[str, float] = field(default_factory=dict)
    anything: Any = None


READER = Reader("file.toml")


def read(**table):
    return READER.read(Point, {"x": 1} | table, "point.", given="here")


def message(**table):
    with pytest.raises(UsageError) as caught:
        read(**table)
    return str(caught.value)


def test_values_arrive_in_the_type_of_the_annotation():
    point = read(
        n=3,
        flag=True,
        name="ρ",
        kind="b",
        pair=[1, 2],
        kinds=["b", "a"],
        maybe=2,
        by_name={"k": 1},
        anything=[None],
    )
    expected = Point("here", 1.0, 3, True, "ρ", "b", 1, (1, 2), ("b", "a"), 2.0, {"k": 1.0}, [None])
    assert point == expected
    # == cannot tell 1 from 1.0 or True
    assert [type(v) for v in (point.x, point.maybe, point.by_name["k"])] == [float] * 3
    assert read() == Point("here", 1.0)
    assert read(maybe=None).maybe is None


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"x": 0}, "point.x must be a number above 0, got 0"),
        ({"x": "1"}, 'point.x must be a number above 0, got "1"'),
        ({"x": True}, "point.x must be a number above 0, got true"),
        ({"x": math.nan}, "point.x must be a number above 0, got NaN"),
        ({"x": math.inf}, "point.x must be a number above 0, got Infinity"),
        ({"x": 1e151}, "point.x must be a number above 0, got 1e+151"),
        ({"x": None}, "point.x must be a number above 0, got null"),
        ({"n": 1.0}, "point.n must be a whole number of at most 64 bits, got 1.0"),
        ({"n": True}, "point.n must be a whole number of at most 64 bits, got true"),
        ({"n": 2**63}, f"point.n must be a whole number of at most 64 bits, got {2**63}"),
        ({"flag": 1}, "point.flag must be true or false, got 1"),
        ({"flag": "true"}, 'point.flag must be true or false, got "true"'),
        ({"name": 1}, "point.name must be a string, got 1"),
        ({"kind": "c"}, 'point.kind must be one of "a", "b", got "c"'),
        ({"kind": []}, 'point.kind must be one of "a", "b", got []'),
        ({"version": 2}, "point.version must be one of 1, got 2"),
        ({"version": True}, "point.version must be one of 1, got true"),
        ({"version": 1.0}, "point.version must be one of 1, got 1.0"),
        ({"pair": 1}, "point.pair must be two whole numbers, got 1"),
        ({"pair": [1]}, "point.pair must be two whole numbers, got [1]"),
        ({"pair": [1, 2.5]}, "point.pair must be two whole numbers, got 2.5"),
        ({"kinds": "a"}, 'point.kinds must be a list, got "a"'),
        ({"kinds": ["a", "c"]}, 'point.kinds must be one of "a", "b", got "c"'),
        ({"maybe": -1}, "point.maybe must be a number of at least 0, got -1"),
        ({"by_name": 1}, "point.by_name must be a table, got 1"),
        (
            {"by_name": {"a b": math.nan}},
            'point.by_name."a b" must be a finite number, in size at most 1e150, got NaN',
        ),
        (
            {"flagg": True},
            "point.flagg is an unknown key (did you mean 'flag'?); it must be one of anything, "
            "by_name, flag, kind, kinds, maybe, n, name, pair, version, x",
        ),
        (
            {"\n": 1},
            'point."\\n" is an unknown key; it must be one of anything, by_name, flag, '
            "kind, kinds, maybe, n, name, pair, version, x",
        ),
    ],
)
def test_each_error_names_file_key_value_and_what_it_must_be(table, expected):
    assert message(**table) == f"file.toml: {expected}"


def test_what_the_caller_gives_is_no_key_of_the_table():
    assert message(given="there").startswith(
        "file.toml: point.given is an unknown key; it must be one of"
    )


def test_a_missing_key_is_named():
    with pytest.raises(UsageError, match=r"^file\.toml: point\.x is missing$"):
        READER.read(Point, {}, "point.", given="here")


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_whole_numbers_of_64_bits_pass(n):
    assert read(n=n).n == n


@given(st.floats(max_value=1e150, min_value=0, exclude_min=True))
def test_positive_floats_pass_and_their_squares_are_finite(x):
    assert read(x=x).x == x
    assert math.isfinite(x * x)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KEYS = st.sampled_from([*Point.__dataclass_fields__, "flga", "", "\u2028"])


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_table_is_read_or_refused_in_one_line(table):
    try:
        assert isinstance(READER.read(Point, table, "point.", given="here"), Point)
    except UsageError as error:
        (line,) = str(error).splitlines()
        assert line.startswith("file.toml: point.")


@given(JSON)
def test_a_value_is_shown_on_one_short_line(value):
    assert len(shown(value).splitlines()) == 1
    assert len(shown(value)) <= 60


def test_a_number_of_thousands_of_digits_is_refused_like_any_other():
    # TOML's hexadecimal numbers have no limit of their own, Python's decimal text has one of 4,300
    must_be = "must be a whole number of at most 64 bits, got a number of thousands of digits"
    assert message(n=1 << 20_000) == f"file.toml: point.n {must_be}"


@pytest.mark.parametrize(
    ("key", "as_toml"), [("a-b_C9", "a-b_C9"), ("sgd+sam", '"sgd+sam"'), ("", '""'), ('"', '"\\""')]
)
def test_keys_are_quoted_as_in_toml(key, as_toml):
    assert quoted(key) == as_toml
