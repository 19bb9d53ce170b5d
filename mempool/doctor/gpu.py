"""``mempool doctor --gpu``: packed layers on this machine's GPU, against the CPU's outputs and beside its libraries."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mempool import ops
from mempool._device_cuda import CUDA
from mempool.doctor import children
from mempool.nn import Int8Linear, SparseInt8Linear
from mempool.packed.format import Format
from mempool.packed.formats import BITMAP, BLOCK4, DENSE, SPARSE24

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))  # outputs, inputs
TOKENS = (1, 4, 16, 64, 128, 512, 2048)
ROUNDS = 15
# Checked, not timed: these end within tiles, panels, groups and vectors.
RAGGED = ((1, 1), (70, 1028), (67, 1027), (300, 141))
RAGGED_TOKENS = (1, 9, 33, 65, 130)
RING_BYTES, _MOST_COPIES = 256 << 20, 64  # of weights in turn: more than any GPU's second cache
_BUSY_CYCLES = 20_000_000  # some 10 ms
_NO_MEMORY = "out of memory"
_WARM_UP = 4  # turns, until clocks have risen

Row = dict[str, Any]
Call = Callable[[torch.Tensor], Any]


def problem() -> str | None:
    """Why no GPU can be examined here; None if one can."""
    if not torch.cuda.is_available():
        return CUDA.problem() or "torch sees no GPU"
    if ops.CUDA_PROBLEM:
        return ops.CUDA_PROBLEM
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} has compute capability below 8.0"
    return None


def examine(
    shapes: Iterable[tuple[int, int]] = SHAPES,
    tokens: Iterable[int] = TOKENS,
    rounds: int = ROUNDS,
    ring_bytes: int = RING_BYTES,
    ragged: Iterable[tuple[int, int]] = RAGGED,
) -> dict[str, Any]:
    """A row for each implementation, shape and number of tokens: milliseconds, and for ours whether all bits are right.

    ``problem`` says why there are no rows, or is None; a GPU that cannot run the kernels has not passed. Shapes that
    are ``ragged`` are not timed. Times are those of calls behind one another, between CUDA events, on weights that are
    not in a cache: medians over turns. Ours quantize float32 activations within them; the peers take theirs as they
    need them.
    """
    result = opening()
    if result["problem"] is None:
        for subject in subjects(shapes, ragged):
            result["rows"] += examine_one(subject, tokens, rounds, ring_bytes)
        result["passed"] = has_passed(result["rows"])
    return result


def opening() -> dict[str, Any]:
    """An examination without its rows; ``passed`` is None where they have yet to come."""
    reason = problem()
    if reason is not None:
        return {"problem": reason, "rows": [], "passed": not torch.cuda.is_available()}
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return {"problem": None, **facts, "rows": [], "passed": None}


def subjects(shapes: Iterable[tuple[int, int]] = SHAPES, ragged: Iterable[tuple[int, int]] = RAGGED) -> list[str]:
    """What is examined, a text for each: whether its time is taken, its shape and its name."""
    out = [f"checked {outputs}x{inputs} {name}" for outputs, inputs in ragged for name in _OURS]
    return out + [f"timed {outputs}x{inputs} {name}" for outputs, inputs in shapes for name in (*_OURS, *_peers())]


def examine_one(
    subject: str, tokens: Iterable[int] = TOKENS, rounds: int = ROUNDS, ring_bytes: int = RING_BYTES
) -> list[Row]:
    """The rows of one subject."""
    way, shape, name = _parsed(subject)
    made = _ours(name, *shape) if name in _OURS else _peers()[name](*shape)
    if way == "checked":
        return _checked(name, shape, made)
    return _measured(name, shape, list(tokens), rounds, made, ring_bytes, name in _OURS)


def lost(subject: str, reason: str) -> Row:
    """The row of a subject whose process was lost; one of ours has failed."""
    _, shape, name = _parsed(subject)
    return _row(name, shape, None) | {"exact": False if name in _OURS else None, "problem": reason}


def has_passed(rows: Iterable[Row]) -> bool:
    """Whether no output of ours was wrong."""
    return all(row["exact"] is not False for row in rows)


def _parsed(subject: str) -> tuple[str, tuple[int, int], str]:
    way, size, name = subject.split(" ", 2)
    outputs, inputs = map(int, size.split("x"))
    return way, (outputs, inputs), name


class _Subject:
    """Something to time: copies of it with weights of their own, and what its outputs have to be."""

    def __init__(
        self,
        copies: Callable[[], Call],
        nbytes: int,
        reference: Call | None = None,
        takes: torch.dtype = torch.float32,  # of its inputs
    ) -> None:
        self.nbytes = nbytes
        self.takes = takes
        self.reference = reference
        self._copies = copies

    def ring(self, ring_bytes: int) -> list[Call]:
        copies = -(-ring_bytes // max(1, self.nbytes))
        return [self._copies() for _ in range(min(_MOST_COPIES, max(2, copies)))]


def _linear(outputs: int, inputs: int, density: float = 1.0, group: int = 1) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(inputs, outputs, device="cpu").requires_grad_(False)
    linear.weight.normal_(generator=generator)
    kept = torch.rand(outputs, -(-inputs // group), generator=generator) < density
    linear.weight.mul_(kept.repeat_interleave(group, dim=1)[:, :inputs])
    return linear


def _packed(layer: Int8Linear | SparseInt8Linear, reference: Call) -> _Subject:
    state = layer.state_dict()

    def copy() -> Call:
        other = type(layer)(layer.in_features, layer.out_features, device="meta")
        other.load_state_dict({name: value.to("cuda", copy=True) for name, value in state.items()}, assign=True)
        return other

    return _Subject(copy, layer.packed_bytes, reference)


def _two_of_four(outputs: int, inputs: int) -> nn.Linear:
    linear = _linear(outputs, inputs)
    random = torch.rand(outputs, -(-inputs // 4), 4, generator=torch.Generator().manual_seed(1), device="cpu")
    linear.weight.mul_((random.argsort(dim=-1) < 2).view(outputs, -1)[:, :inputs])
    return linear


# Each format, by the weights that it is examined with.
_OURS: dict[str, tuple[Format, Callable[[int, int], nn.Linear]]] = {
    "int8": (DENSE, _linear),
    "bitmap 50%": (BITMAP, functools.partial(_linear, density=0.5)),
    "bitmap 75%": (BITMAP, functools.partial(_linear, density=0.25)),
    "block4 80%": (BLOCK4, functools.partial(_linear, density=0.2, group=4)),
    "2:4": (SPARSE24, _two_of_four),
}


def _ours(name: str, outputs: int, inputs: int) -> _Subject:
    format, linear_of = _OURS[name]
    linear = linear_of(outputs, inputs)
    dense = Int8Linear.from_linear(linear)
    layer = SparseInt8Linear.from_linear(linear, format.pattern) if format.is_sparse else dense
    return _packed(layer, layer if "cpu" in format.targets else dense)


def _bfloat16(outputs: int, inputs: int) -> _Subject:
    weight = _linear(outputs, inputs).weight.detach().to(torch.bfloat16)

    def copy() -> Call:
        on_gpu = weight.to("cuda", copy=True)
        return lambda input: nn.functional.linear(input, on_gpu)

    return _Subject(copy, weight.nbytes, takes=torch.bfloat16)


def _int_mm(outputs: int, inputs: int) -> _Subject:
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)

    def copy() -> Call:
        on_gpu = weight.to("cuda", copy=True).t()
        return lambda input: torch._int_mm(input, on_gpu)

    return _Subject(copy, weight.nbytes, takes=torch.int8)


def _semi_structured(outputs: int, inputs: int) -> _Subject:
    kept = torch.tensor([1, 1, 0, 0], dtype=torch.int8).repeat(outputs, inputs // 4)
    weight = torch.randint(1, 128, (outputs, inputs), dtype=torch.int8) * kept

    def copy() -> Call:
        compressed = torch._cslt_compress(weight.to("cuda", copy=True))
        return lambda input: torch._cslt_sparse_mm(compressed, input.t(), out_dtype=torch.int32)

    return _Subject(copy, weight.nbytes * 5 // 8, takes=torch.int8)


def _peers() -> dict[str, Callable[[int, int], _Subject]]:
    return {
        "bfloat16, torch": _bfloat16,
        "int8, cuBLASLt (torch._int_mm)": _int_mm,
        "2:4 int8, cuSPARSELt": _semi_structured,
    }


def _row(name: str, shape: tuple[int, int], tokens: int | None) -> Row:
    row: Row = {"name": name, "outputs": shape[0], "inputs": shape[1], "tokens": tokens, "ms": None}
    return row | {"gb_per_s": None, "tera_ops": None, "exact": None, "problem": None}


def _checked(name: str, shape: tuple[int, int], subject: _Subject) -> list[Row]:
    """One of ours on rows of float32 and of bfloat16, whether all bits are right."""
    assert subject.reference is not None
    rows: list[Row] = []
    call = subject.ring(1)[0]
    for count in RAGGED_TOKENS:
        for dtype in (torch.float32, torch.bfloat16):
            row = _row(name, shape, count)
            rows.append(row)
            input = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(count), device="cpu").to(dtype)
            try:
                row["exact"] = torch.equal(call(input.to("cuda")).cpu(), subject.reference(input))
            except (RuntimeError, NotImplementedError) as error:
                row["exact"], row["problem"] = False, str(error).splitlines()[0][:120]
    return rows


def _measured(
    name: str,
    shape: tuple[int, int],
    tokens: list[int],
    rounds: int,
    subject: _Subject,
    ring_bytes: int,
    is_ours: bool,
) -> list[Row]:
    rows: list[Row] = []
    ring: list[Call] | None = None
    for count in tokens:
        row = _row(name, shape, count)
        rows.append(row)
        try:
            ring = subject.ring(ring_bytes) if ring is None else ring
            input = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(count), device="cpu")
            on_gpu = input.to(subject.takes).to("cuda")
            if is_ours and subject.reference is not None:
                row["exact"] = torch.equal(ring[0](on_gpu).cpu(), subject.reference(input))
            row["ms"] = _milliseconds(ring, on_gpu, rounds)
        except torch.OutOfMemoryError:
            row["problem"] = _NO_MEMORY
            continue
        except (RuntimeError, NotImplementedError) as error:
            if is_ours:
                row["exact"] = False
            row["problem"] = str(error).splitlines()[0][:120]
            continue
        if row["ms"] > 0:
            row["gb_per_s"] = subject.nbytes / row["ms"] / 1e6
            row["tera_ops"] = 2 * count * shape[0] * shape[1] / row["ms"] / 1e9
    return rows


def _milliseconds(ring: list[Call], input: torch.Tensor, rounds: int) -> float:
    """Of one call, in a turn of the ring.

    The GPU is kept busy until the whole turn waits for it: else what is measured is how fast this process launches.
    """
    event: Any = torch.cuda.Event
    sleep: Any = torch.cuda._sleep
    times: list[float] = []
    for turn in range(rounds + _WARM_UP):
        start, end = event(enable_timing=True), event(enable_timing=True)
        sleep(_BUSY_CYCLES)
        start.record()
        for call in ring:
            call(input)
        end.record()
        end.synchronize()
        if turn >= _WARM_UP:
            times.append(start.elapsed_time(end) / len(ring))
    return statistics.median(times)


def main(names: list[str]) -> None:
    """As a child of `children`: the rows of each subject. After an error of CUDA another process has to go on."""

    def answer(subject: str) -> tuple[list[Row], bool]:
        rows = examine_one(subject)
        return rows, all(row["problem"] in (None, _NO_MEMORY) for row in rows)

    children.serve(names, answer)


if __name__ == "__main__":
    main(sys.argv[1:])
