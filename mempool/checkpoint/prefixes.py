"""Advice on prefixes: why none of a file's names is a name of the model, and which prefix would fit."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

from mempool.compress.layers import some


def advice(keys: Iterable[str], names: Iterable[str], prefix: str) -> str:
    """What to do where no key of a file, without ``prefix``, is a name of the model: the end of a sentence."""
    keys, names = list(keys), list(names)
    if not keys:
        return "it has no tensors."
    if any(key.startswith(prefix) for key in keys):
        said = f"its names begin with {some(repr(start) for start in _starts(keys))}"
    else:
        said = f"none of its names begins with {prefix!r}; they are {', '.join(keys[:3])} …"
    in_file = {*keys, *(key.removesuffix(".format") for key in keys if key.endswith(".format"))}  # packed layers
    in_model = {*names, *(name.rpartition(".")[0] for name in names)} - {""}
    if (found := _in_front(in_file, in_model, prefix)) is not None:
        return f"{said}. prefix={found!r} fits."
    if (found := _in_front(in_model, in_file, "")) is not None:
        return f"{said}, and the model's with {found!r} in front: load into model.get_submodule({found[:-1]!r})."
    near = difflib.get_close_matches(prefix, _starts(keys), n=1) if prefix else []
    return f"{said}. {f'The nearest prefix is {near[0]!r}.' if near else 'prefix is what they begin with.'}"


def _starts(keys: Iterable[str]) -> list[str]:
    """The first part of each name, without repetitions."""
    return list(dict.fromkeys(f"{start}." if rest else start for start, _, rest in (k.partition(".") for k in keys)))


def _in_front(longer: Iterable[str], shorter: set[str], known: str) -> str | None:
    """The prefix, other than ``known``, that most names have in front of a name of ``shorter``."""
    counts: Counter[str] = Counter()
    for name in longer:
        start = 0
        while start >= 0:
            if name[start:] in shorter:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    del counts[known]
    return min(counts, key=lambda front: (-counts[front], len(front)), default=None)
