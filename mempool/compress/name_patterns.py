"""Patterns of names, as in a shell, many of them over many names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable

_NOT_LITERAL = re.compile(r"[*?]|\[!?\]?[^\]]*\]")


def matched(names: Collection[str], patterns: Iterable[str]) -> tuple[set[str], str | None]:
    """The names that a pattern matches, or that are one; and the first pattern that matches none.

    Regular expressions are tried on the names alone that have a pattern's longest literal part: a thousand patterns
    over thousands of names would take seconds.
    """
    known = frozenset(names)
    found: set[str] = set()
    for pattern in dict.fromkeys(patterns):
        if pattern in known:
            found.add(pattern)
            continue
        literal = max(_NOT_LITERAL.split(pattern), key=len)
        match = re.compile(fnmatch.translate(pattern)).match
        hits = [name for name in known if literal in name and match(name)]
        if not hits:
            return found, pattern
        found.update(hits)
    return found, None
