"""Matches many patterns, as a shell has them, against many names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable

_NOT_LITERAL = re.compile(r"[*?]|\[!?\]?[^\]]*\]")


def matched(names: Collection[str], patterns: Iterable[str]) -> tuple[set[str], str | None]:
    """The names that match or equal one of the patterns, and the first pattern that matches none.

    A regular expression is tried only on names that contain the longest literal part of its pattern: a thousand
    patterns over thousands of names would take seconds otherwise.
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
