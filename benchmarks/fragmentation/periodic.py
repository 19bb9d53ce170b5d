"""Makes traces whose steps recur, to test whether an allocator reaches a steady state.

Both traces are seeded, so that every run replays the same events.

``periodic_train``: a transformer is trained on a cycle of eight sequence lengths. A step allocates each layer's
activations forward, frees them backward in the reverse order with temporaries between them, and every second step of
the cycle also makes and drops the optimizer's buffers of the largest layers.

``periodic_serve``: a cycle of 48 requests of 12 sizes; each holds a cache that doubles by copying while it lives, and
up to six live at once, ending in another order than they began.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

MIB = 1 << 20


@dataclass
class Recorder:
    """Collects events: (operation, id, bytes)."""

    events: list[tuple[str, int, int]] = field(default_factory=list)
    count: int = 0

    def alloc(self, size: int) -> int:
        self.events.append(("alloc", self.count, size))
        self.count += 1
        return self.count - 1

    def free(self, block: int) -> None:
        self.events.append(("free", block, 0))

    def step(self, number: int) -> None:
        self.events.append(("step", number, 0))


def _train_step(out: Recorder, length: int, hidden: int, layers: int, with_buffers: bool) -> None:
    tokens = 4 * length
    saved: list[list[int]] = []
    for _ in range(layers):
        qkv = out.alloc(tokens * hidden * 3 * 2)
        scores = out.alloc(4 * 16 * length * length * 2)
        mixed = out.alloc(tokens * hidden * 2)
        out.free(scores)
        wide = out.alloc(tokens * hidden * 4 * 2)
        norm = out.alloc(tokens * 8)
        saved.append([qkv, mixed, wide, norm])
    logits = out.alloc(tokens * 32000 * 2)
    loss = out.alloc(4)
    gradient = out.alloc(tokens * 32000 * 2)
    out.free(logits)
    flow = out.alloc(tokens * hidden * 2)
    out.free(gradient)
    for layer in reversed(saved):
        temporary = out.alloc(tokens * hidden * 4 * 2)
        for block in layer:
            out.free(block)
        following = out.alloc(tokens * hidden * 2)
        out.free(temporary)
        out.free(flow)
        flow = following
    out.free(flow)
    out.free(loss)
    if with_buffers:
        buffers = [out.alloc(hidden * hidden * 4 * 4) for _ in range(layers // 2)]
        for block in buffers:
            out.free(block)


def periodic_train(cycles: int = 40) -> Recorder:
    out = Recorder()
    hidden, layers = 1536, 16
    for _ in range(layers):
        for size in (hidden * hidden * 3 * 4, hidden * hidden * 4, hidden * hidden * 8 * 4, hidden * 8):
            out.alloc(size)
    lengths = [217, 512, 333, 96, 768, 450, 128, 640]
    for cycle in range(cycles):
        for i, length in enumerate(lengths):
            out.step(cycle * len(lengths) + i)
            _train_step(out, length, hidden, layers, i % 2 == 1)
    return out


def _requests(seed: int) -> list[tuple[int, int, int]]:
    """(first bytes, number of doublings, order of its end) for each request of a cycle."""
    source = random.Random(seed)
    sizes = [source.randrange(1 * MIB, 24 * MIB) // 512 * 512 for _ in range(12)]
    return [(source.choice(sizes), source.randrange(1, 4), source.randrange(6)) for _ in range(48)]


def periodic_serve(cycles: int = 40) -> Recorder:
    out = Recorder()
    weights = [out.alloc(37 * MIB + 4096 * i) for i in range(24)]
    assert weights
    requests = _requests(seed=11)
    for cycle in range(cycles):
        out.step(cycle)
        live: list[int] = []
        for size, doublings, ends in requests:
            block = out.alloc(size)
            for power in range(1, doublings + 1):
                larger = out.alloc(size << power)
                work = out.alloc(300_000 + size // 8)
                out.free(block)
                out.free(work)
                block = larger
            live.append(block)
            if len(live) > 5:
                out.free(live.pop(ends))
        for block in live:
            out.free(block)
    return out


TRACES = {"periodic_train": periodic_train, "periodic_serve": periodic_serve}


def lines(name: str) -> Iterator[str]:
    """The trace in the format that ``mempool replay`` reads."""
    yield f"# {name}: made by benchmarks/fragmentation/periodic.py\n"
    yield "seq,op,id,bytes,stream\n"
    for number, (op, block, size) in enumerate(TRACES[name]().events):
        yield f"{number},{op},{block},{size if op == 'alloc' else ''},0\n"
