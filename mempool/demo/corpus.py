"""Real text that every Python installation carries, cut into a seeded sequence of requests."""

from __future__ import annotations

import importlib.metadata
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from mempool.demo.errors import DemoError

Request = list[str]  # the passages of one request, embedded as one batch

SEED = 20240611
PASSAGES_MAX = 24  # passages in one request of the burst
WORDS_MIN, WORDS_MAX = 8, 190  # words in one passage; the model cuts at 256 tokens, some 190 words of English
LARGE_PASSAGES = 16
SMALL_PASSAGES, SMALL_WORDS = 2, 30


@dataclass(frozen=True)
class Workload:
    """What every worker is given; the same for all of them."""

    warmup: list[Request]
    burst: list[Request]
    small: Request
    large: Request


def build(requests: int, warmup: int) -> Workload:
    """The workload of ``requests`` requests behind ``warmup`` that are served first and not measured."""
    documents = _documents()
    # Two generators, so that the shapes are the same everywhere, whatever texts a machine happens to carry.
    shapes, texts = random.Random(SEED), random.Random(SEED + 1)
    sequence = [_draw(shapes) for _ in range(warmup + requests)]
    sequence += [[SMALL_WORDS] * SMALL_PASSAGES, [WORDS_MAX] * LARGE_PASSAGES]
    *served, small, large = ([_passage(documents, texts, words) for words in request] for request in sequence)
    return Workload(warmup=served[:warmup], burst=served[warmup:], small=small, large=large)


def passages(count: int, held_out: int, seed: int = SEED) -> tuple[list[str], list[str]]:
    """Passages to calibrate with, and others from documents that none of these came from."""
    documents, rng = _documents(), random.Random(seed)
    rng.shuffle(documents)
    cut = max(1, len(documents) // 4)
    rest = documents[cut:] or documents
    return (
        [_passage(rest, rng, rng.randint(WORDS_MIN, WORDS_MAX)) for _ in range(count)],
        [_passage(documents[:cut], rng, rng.randint(WORDS_MIN, WORDS_MAX)) for _ in range(held_out)],
    )


def _draw(rng: random.Random) -> list[int]:
    """The words of each passage. Log-uniform: many short requests and a few far longer ones, as services see them."""
    passages = round(PASSAGES_MAX ** rng.random())
    longest = round(WORDS_MIN * (WORDS_MAX / WORDS_MIN) ** rng.random())
    return [rng.randint(WORDS_MIN, longest) for _ in range(passages)]


def _passage(documents: list[list[str]], rng: random.Random, words: int) -> str:
    document = rng.choice(documents)
    start = rng.randrange(max(1, len(document) - words))
    return " ".join(document[start : start + words])


def _documents() -> list[list[str]]:
    """Every text as words, without duplicates, in an order that does not depend on the file system."""
    texts = dict.fromkeys([*_python_topics(), *_licences()])
    documents = [words for words in (text.split() for text in texts) if len(words) >= WORDS_MIN]
    if not documents:
        raise DemoError("The demo found no text to embed: this Python has neither pydoc_data nor any licence file.")
    return documents


def _python_topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it separately
        return []
    return [str(topics[name]) for name in sorted(topics)]


def _licences() -> list[str]:
    paths = {Path(sys.base_prefix) / "LICENSE.txt", *Path(sys.base_prefix).glob("lib/python3*/LICENSE.txt")}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or []:
            if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")) and file.suffix not in {".py", ".pyc"}:
                paths.add(Path(str(distribution.locate_file(file))))
    texts = []
    for path in sorted(paths):
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
    return texts
