"""The architectures, one module each; adding a file here adds an architecture.

Each module offers a ``build`` whose parameters are some of ``width``, ``in_channels``, ``classes``
and ``image_size``, and its own options, which have defaults. The registry is the folder's listing,
so that naming the architectures costs no import of torch.

A network of the user's own is built in the same way, by what its reference names.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatbench import components
from flatbench.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: tuple[str, ...] = tuple(
    sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
    )
)

ImageSize = int | tuple[int, int]
"""The pixels along a side of a square image, or (height, width)."""


def build(
    name: str,
    *,
    width: int = 64,
    in_channels: int = 3,
    classes: int = 10,
    image_size: ImageSize = 32,
    **options: Any,
) -> nn.Module:
    """Return a freshly initialised network for images of 8×8 to 32×32 pixels.

    ``width`` scales the network's channels; 64 is the published network. The weights come from
    torch's global random generator.

    Raises:
        UsageError: as `builder`.
    """
    given = {
        "width": width,
        "in_channels": in_channels,
        "classes": classes,
        "image_size": image_size,
    }
    return builder(name, given, options)()


def builder(
    reference: str,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    folder: Path | None = None,
    where: str = "architecture",
) -> Callable[[], nn.Module]:
    """Return a function without arguments that builds a network.

    The code behind the reference is imported here and not when the network is built: a module may
    draw random numbers when it is imported, and it is imported once a process. So whoever seeds
    torch between the two gets the same weights every time.

    Args:
        reference: one of `ARCHITECTURES`, or a reference as in `flatbench.components`.
        given: ``width``, ``in_channels``, ``classes`` and ``image_size``. What it names is called
            with those of them that it takes, ``classes`` under the name ``num_classes`` too. If it
            names neither of these two and takes any keyword, as torchvision's builders do, it gets
            ``num_classes``.
        options: what else to call it with; they come before ``given``.
        folder: what a file's path is relative to.
        where: what opens the line of an error.

    Raises:
        UsageError: the reference names nothing, or an option is unknown or missing. When the
            network is built: the code raised an error, or returned no `torch.nn.Module`.
    """
    # Our own modules are imported one by one, when they are named.
    ours = {
        name: importlib.import_module(f"{__name__}.{name}").build if name == reference else None
        for name in ARCHITECTURES
    }
    component = components.find(reference, folder, ours, where)
    options = components.resolved(options, folder, where)
    given = {**given, "num_classes": given["classes"]}
    if _takes_classes_as_keyword(component.target) and "classes" not in options:
        options = {"num_classes": given["classes"], **options}
    arguments = components.arguments(component, options, where, given=given)

    def make() -> nn.Module:
        from torch import nn

        network = components.called(component, where, **arguments)
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise UsageError(f"{where}: {reference} must return a torch.nn.Module, got {kind}")
        return network

    return make


def _takes_classes_as_keyword(target: Any) -> bool:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # not callable, or without a signature
        return False
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes_any and not {"classes", "num_classes"} & parameters.keys()


def at_least_one(name: str, value: Any) -> int:
    """Return an option that must be a whole number of at least 1.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
