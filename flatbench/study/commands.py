"""The commands of a study, as the command line takes them: their options, and what runs.

What imports torch is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

EXAMPLES: Final[dict[str, str]] = {}


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to the command line."""
