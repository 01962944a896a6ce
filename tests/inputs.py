"""Inputs as nobody means them: what the tests of bad input draw, and the fuzz job."""

import copy

from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["", "nan", "digits", "\ud800", "completed", "0123456789ab"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
# Lone surrogates, control and bidi signs, and everything that a format might take for its own.
NAMES = st.text(
    st.characters() | st.sampled_from("|<>&\"'\\`*_$%#{}~^[]\n\r\t\0\x1b\u202e\ud800 =@:/"),
    min_size=1,
    max_size=12,
)
TOML = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["-1", "1e400", "nan", "inf", "true", '""', "[]", "{}", "9" * 5000, "[" * 3000, "=", "\n["]
)


def paths_of(value, prefix=()):
    """Every place in a JSON value, inner ones too."""
    places = [prefix] if prefix else []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items if isinstance(value, dict | list) else ():
        places += (
            paths_of(inner, (*prefix, key)) if isinstance(inner, dict | list) else [(*prefix, key)]
        )
    return places


@st.composite
def mutated(draw, valid, values=JSON, names=NAMES):
    """A valid value with one to three places changed, removed or renamed."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = paths_of(value)
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        inner = value
        for key in parents:
            inner = inner[key]
        change = draw(st.sampled_from(["replace", "remove", "rename"]))
        if change == "replace" or isinstance(inner, list):
            inner[last] = draw(values)
        else:
            old = inner.pop(last)
            if change == "rename":
                inner[draw(names)] = old
    return value


@st.composite
def respelled(draw, text):
    """A text in which a stretch is another, or noise."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 12)))
    return text[:start] + draw(TOML) + text[end:]


@st.composite
def damaged(draw, content):
    """Bytes of which some are others, or that end too soon."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 4)) == 0:
            del found[draw(st.integers(0, len(found))) :]
        if not found:
            break
        found[draw(st.integers(0, len(found) - 1))] = draw(st.integers(0, 255))
    return bytes(found)
