"""What a reference names, and what identifies the code behind it.

A protocol names an optimizer, a model, a data source, a loss by a *reference*:

- a name of ours ("adamw"), or one that an installed package has registered as an entry point of the
  group ``flatbench.components``, which then comes before ours;
- ``"package.module:Object"``, imported as usual;
- ``"./file.py:Object"``, a file relative to the protocol's own.

The text alone is looked at when a protocol is read. Its code is imported, and so run, when
something is trained.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from flatbench.errors import UsageError
from flatbench.text import did_you_mean

GROUP = "flatbench.components"
FORMS = "package.module:Object or ./file.py:Object"

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_IN_PACKAGE = re.compile(rf"({_NAME}(?:\.{_NAME})*)(?<!\.py):({_NAME}(?:\.{_NAME})*)")
_IN_FILE = re.compile(rf"((?:\.{{1,2}}/|/).*\.py):({_NAME}(?:\.{_NAME})*)")


@dataclass(frozen=True)
class Component:
    """What a reference names.

    Attributes:
        reference: the text.
        target: the object.
        source: what identifies its code: a distribution and its version, or the digest of a file
            and of what it imports from its own folder. None for what is ours.
    """

    reference: str
    target: Any
    source: str | None


def is_reference(text: str) -> bool:
    """Return whether a text has the form of a reference to a package or a file."""
    return bool(_IN_PACKAGE.fullmatch(text) or _IN_FILE.fullmatch(text))


def is_known(text: str, ours: Iterable[str]) -> bool:
    """Return whether a text is a name of ours, a registered one, or has a reference's form."""
    return text in ours or is_reference(text) or text in _entry_points()


def is_registered(text: str) -> bool:
    """Return whether an installed package has registered a name."""
    return text in _entry_points()


def find(reference: str, folder: Path | None, ours: Mapping[str, Any], where: str) -> Component:
    """Import what a reference names.

    Args:
        reference: the text.
        folder: what a file's path is relative to: the protocol file's folder.
        ours: objects by their short names.
        where: file and key, to open an error with.

    Raises:
        UsageError: nothing has that name, or its code cannot be imported.
    """
    if (in_file := _IN_FILE.fullmatch(reference)) is not None:
        path = (folder or Path()) / in_file[1]
        path = path.resolve()
        if not path.is_file():
            raise UsageError(f"{where}: {reference!r}: there is no file {path}")
        content = digest(path)
        module = _load_file(path, content, f"{where}: {reference!r}")
        source = f"{in_file[1]} {content}"
        return Component(reference, _attribute(module, in_file[2], reference, where), source)
    if (in_package := _IN_PACKAGE.fullmatch(reference)) is not None:
        module = _import(in_package[1], f"{where}: {reference!r}")
        target = _attribute(module, in_package[2], reference, where)
        return Component(reference, target, _version(module))
    if (entry := _entry_points().get(reference)) is not None:
        module = _import(entry.module, f"{where}: {reference!r}")
        target = _attribute(module, entry.attr, reference, where)
        return Component(reference, target, f"{entry.value} of {_version(module)}")
    if reference in ours:
        return Component(reference, ours[reference], None)
    raise UsageError(f"{where} must be one of {', '.join(ours)}, or {FORMS}, got {reference!r}")


@functools.cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def _import(name: str, where: str) -> ModuleType:
    return _imported(lambda: importlib.import_module(name), where)


@functools.cache
def _load_file(path: Path, content: str, where: str) -> ModuleType:
    """Import a file, once for each content, under a name that no other module has.

    A file that is edited while a grid trains is imported again, so that a run's key and the code
    that it runs are always of the same content.
    """
    name = f"_flatbench_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its neighbours can be imported by it, at the end of the path so that they hide nothing.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    files = {str(file) for file in _with_neighbours(path)}
    for other, loaded in list(sys.modules.items()):
        if getattr(loaded, "__file__", None) in files:
            del sys.modules[other]
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name

    def run() -> ModuleType:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return module

    try:
        return _imported(run, where)
    except UsageError:
        del sys.modules[name]
        raise


def _imported(load: Callable[[], ModuleType], where: str) -> ModuleType:
    try:
        return load()
    except (Exception, SystemExit) as error:  # a script that ends by sys.exit is none to import
        raise UsageError(f"{where}: cannot be imported: {in_one_line(error)}") from error


def _attribute(module: ModuleType, path: str, reference: str, where: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            hint = did_you_mean(name, dir(found))
            raise UsageError(f"{where}: {reference!r}: there is no {name!r} in it{hint}")
        found = getattr(found, name)
    return found


def in_one_line(error: BaseException) -> str:
    """Return an exception's type and message without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- what identifies the code


def _version(module: ModuleType) -> str:
    """Return "distribution version", with a digest where the code can change under a version.

    That is so of an editable installation, and of a module that belongs to no distribution.
    """
    top = module.__name__.partition(".")[0]
    names = _distributions().get(top)
    version = f"{names[0]} {metadata.version(names[0])}" if names else top
    if names and not _is_editable(names[0]):
        return version
    file = getattr(sys.modules[top], "__file__", None)
    return version if file is None else f"{version} {digest(Path(file))}"


def _is_editable(distribution: str) -> bool:
    """Return whether a distribution's code lies where it is edited (PEP 610)."""
    origin = json.loads(metadata.distribution(distribution).read_text("direct_url.json") or "{}")
    return bool(origin.get("dir_info", {}).get("editable"))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def digest(path: Path) -> str:
    """Return 12 hex digits over a file and over the files of its folder that it imports.

    Of a package's ``__init__.py`` they are over all of the package.
    """
    content = hashlib.sha256()
    for file in sorted(_files_with(path)):
        content.update(file.read_bytes())
    return content.hexdigest()[:12]


def files(reference: str, folder: Path) -> set[Path]:
    """Return the files that a reference to a file needs, its own among them; else none."""
    in_file = _IN_FILE.fullmatch(reference)
    return set() if in_file is None else _files_with((folder / in_file[1]).resolve())


def _files_with(path: Path) -> set[Path]:
    is_package = path.name == "__init__.py"
    return set(path.parent.rglob("*.py")) if is_package else _with_neighbours(path)


def _with_neighbours(path: Path) -> set[Path]:
    found, waiting = {path}, [path]
    while waiting:
        file = waiting.pop()
        for name in _imports(file):
            for neighbour in _files_of(path.parent, name):
                if neighbour not in found:
                    found.add(neighbour)
                    waiting.append(neighbour)
    return found


def _imports(path: Path) -> Iterator[str]:
    """Yield the top names that a file imports, wherever in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # it is there, and nobody has imported it yet
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.module.partition(".")[0]
            else:
                yield from (alias.name for alias in node.names)


def _files_of(folder: Path, name: str) -> list[Path]:
    file = folder / f"{name}.py"
    return [file] if file.is_file() else sorted((folder / name).rglob("*.py"))


# --- options


def arguments(
    component: Component,
    options: Mapping[str, Any],
    where: str,
    *,
    given: Mapping[str, Any] | None = None,
    positional: int = 0,
) -> dict[str, Any]:
    """Return what to call a component with: what it takes of ``given``, and all the options.

    Args:
        component: a class or function.
        options: what the user wants. Every one of them must be taken.
        where: file and key of the options, to open an error with.
        given: what the caller can offer, by name. A component takes those that it names.
        positional: how many leading parameters the caller passes by place.

    Raises:
        UsageError: an option is unknown, or a parameter without a default has no value.
    """
    given = given or {}
    takers = dict([*parameters(component.target).items()][positional:])
    takes_all = any(p.kind is p.VAR_KEYWORD for p in takers.values())
    named = {
        name: p for name, p in takers.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    unknown = [] if takes_all else [name for name in options if name not in named]
    values = {name: value for name, value in given.items() if name in named} | dict(options)
    missing = [name for name, p in named.items() if p.default is p.empty and name not in values]
    if unknown or missing:
        found = f"{unknown[0]!r} is unknown" if unknown else f"{missing[0]!r} is missing"
        takes = ", ".join(name for name in named if name not in given) or "no options"
        raise UsageError(f"{where}: {found}: {component.reference} takes {takes}")
    return values


def takes(component: Component, name: str) -> bool:
    """Return whether a component has a parameter of this name."""
    return name in parameters(component.target)


def needs(component: Component, name: str) -> bool:
    """Return whether a component has a parameter of this name without a default."""
    found = parameters(component.target).get(name)
    return found is not None and found.default is found.empty


def parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class or function, by name; of one that tells none, all."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # not callable; or written in C without a signature
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}


def references(value: object) -> Iterator[str]:
    """Yield the references within options: every ``{ ref = "..." }``, at any depth."""
    if isinstance(value, Mapping):
        if set(value) == {"ref"} and isinstance(value["ref"], str):
            yield value["ref"]
        else:
            for inner in value.values():
                yield from references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def resolved(value: Any, folder: Path | None, where: str) -> Any:
    """Return options with their references resolved, and their lists as tuples.

    Optimizers take tuples, as of betas, where TOML has lists.

    Raises:
        UsageError: a reference names nothing.
    """
    if isinstance(value, Mapping):
        if set(value) == {"ref"} and isinstance(value["ref"], str):
            return find(value["ref"], folder, {}, where).target
        return {key: resolved(inner, folder, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(resolved(inner, folder, where) for inner in value)
    return value


def called(component: Component, where: str, /, *positional: Any, **keywords: Any) -> Any:
    """Call a component; what it raises becomes one line.

    Raises:
        UsageError: the component raised an error of its own.
    """
    try:
        return component.target(*positional, **keywords)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{where}: {component.reference}: {in_one_line(error)}") from error
