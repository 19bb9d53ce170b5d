"""Plain text for people: tables without escape codes, and names without control characters."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def render(*parts: RenderableType, width: int) -> str:
    """Tables and lines of ``rich`` as plain text: no escape codes, and nothing shown by a notebook meanwhile."""
    from rich.console import Console  # only here: importing mempool stays light

    text = StringIO()
    console = Console(
        file=text, width=width, force_terminal=False, force_jupyter=False, color_system=None, markup=False, emoji=False
    )
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return text.getvalue()


def printable(text: str) -> str:
    """The text with control characters, and characters that cannot be encoded, as escapes. Line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
