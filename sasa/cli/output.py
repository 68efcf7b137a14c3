"""What commands write on the terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.color import Color
from rich.console import Console
from rich.style import Style

if TYPE_CHECKING:
    from sasa.core.boundary import Boundary

out = Console(highlight=False)


def print_line(text: str) -> None:
    """Prints a sentence with paths or names in it as it is: not wrapped, and nothing taken for markup."""
    out.print(text, soft_wrap=True, markup=False)


def print_json(value: Any) -> None:
    """A line of JSON on stdout, in characters that its encoding has."""
    print(json.dumps(value, ensure_ascii=not in_unicode()), flush=True)


def in_unicode() -> bool:
    """Whether stdout has every character."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def style(boundary: Boundary, margin: float) -> Style:
    """Red where a text is surely unsafe, by way of yellow, to green where it is surely safe."""
    p = boundary.p_safe(margin)
    red, green = min(1.0, 2 * (1 - p)), min(1.0, 2 * p)
    return Style(color=Color.from_rgb(60 + 195 * red, 60 + 160 * green, 60))
