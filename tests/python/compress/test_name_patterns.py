"""Which layers `skip` means: as a shell matches names, and many patterns over many layers."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from mempool.compress import convert
from mempool.compress.layers import not_skipped
from mempool.compress.name_patterns import matched
from mempool.nn import Int8Linear

NAMES = ["a", "a.b", "a.bb", "a.b.c", "b[0]", "b0", "layers.0.fc", "layers.10.fc", "layers.11.out", "!", "]", "x*y"]


PATTERNS = "* ? a* *b a.? *.b* [ab]* [!a]* b[[]0] b[0] layers.1[0-9].* layers.*.fc *1* *[0-9].[fo]*"
ODD = "x[*]y []] [!]] [] [ b[0 nothing [z-a]*"


@pytest.mark.parametrize("pattern", [*PATTERNS.split(), *ODD.split(), ""])
def test_patterns_are_those_of_a_shell(pattern: str) -> None:
    expected = {pattern} if pattern in NAMES else {name for name in NAMES if fnmatch.fnmatchcase(name, pattern)}
    assert matched(NAMES, [pattern]) == (expected, None if expected else pattern)


def test_the_first_pattern_that_matches_nothing_is_named() -> None:
    assert matched(NAMES, ["*", "a.*", "a.b"]) == (set(NAMES), None)
    assert matched(NAMES, ["a", "c?", "d?"])[1] == "c?"
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no layer's name matches '2\*'. There are 0, 1\."):
        convert(model, skip=["0", "2*"])
    with pytest.raises(ValueError, match=r"no layer's name matches ''"):
        convert(model, skip=[""])
    assert [type(layer) for layer in convert(model, skip=["0*", "0"])] == [nn.Linear, Int8Linear]


def _calls_of_match(call: Callable[[], object]) -> int:
    count = 0

    def profile(_: Any, event: str, function: Any) -> None:
        nonlocal count
        count += event == "c_call" and function.__name__ in ("match", "fullmatch", "search")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("pattern", ["layers.{}.*", "*.{}.fc", "layers.{}.f?", "*.{}.*"])
def test_a_thousand_patterns_do_not_meet_every_layer(pattern: str) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"fc": nn.Identity()}) for _ in range(2000))})
    patterns = [pattern.format(index) for index in range(1000)]
    kept: dict[str, nn.Module] = {}
    # Each meets what it matches.
    assert _calls_of_match(lambda: kept.update(not_skipped(model, patterns))) <= 3 * len(patterns)
    assert [name for name in kept if name.endswith("fc")] == [f"layers.{index}.fc" for index in range(1000, 2000)]
