"""Errors of pressure callbacks are kept for the out-of-memory error; the program's own errors are left alone."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
import torch

import mempool

MIB = 1 << 20
NO_POOL = contextlib.nullcontext()


def bytes_of(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


def saved_error() -> RuntimeError:
    """An error that a program keeps, and in its frames a tensor of 1 MiB."""

    def flush() -> None:
        batch = bytes_of(MIB)
        raise RuntimeError(f"{len(batch)} bytes could not be flushed")

    try:
        flush()
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("again", ["from", "itself", "by another", "by a future"])
def test_an_error_that_the_program_had_saved_keeps_its_frames(
    live_bytes: Callable[[], int], again: str, pooled: bool
) -> None:
    pool = mempool.MemoryPool("request")
    mempool.empty_cache()
    mempool.set_limit(mempool.memory_reserved() + 8 * MIB)
    program: list[RuntimeError] = [saved_error()]
    traceback = program[0].__traceback__

    def raise_it() -> None:
        raise program[0]

    def busy(name: str, needed: int) -> None:
        if again == "from":
            raise LookupError("still busy") from program[0]
        if again == "by another":
            raise_it()
        if again == "by a future":
            future: Future[None] = Future()
            future.set_exception(program[0])
            future.result()
        raise program[0]

    def request() -> None:
        activations = bytes_of(4 * MIB)
        try:
            raise KeyError(len(activations))
        except KeyError:  # while the program handles this, the allocation fails
            bytes_of(100 * MIB)

    handle = mempool.on_pressure(busy)
    for _ in range(6):
        with pytest.raises(mempool.OutOfMemoryError) as caught, mempool.use_pool(pool) if pooled else NO_POOL:
            request()
        assert program[0].__traceback__ is traceback
        assert program[0].__context__ is None
        assert not hasattr(program[0], "__notes__")
        info = mempool.oom_info(caught.value)
        assert info is not None
        kept = info["callback_error"]
        assert (kept.__cause__ if again == "from" else kept) is program[0]
        assert caught.value.__cause__ is (kept if pooled else None)
        del caught, info, kept
        gc.collect()
        assert live_bytes() == MIB  # what the program's own error holds
    handle.remove()
    program.clear()
    del traceback
    if not pooled:  # that error is no cause of anything, so it is kept until the next one
        other = mempool.on_pressure(lambda name, needed: 1 // 0)
        with pytest.raises(mempool.OutOfMemoryError):
            request()
        other.remove()
    gc.collect()
    assert live_bytes() == 0


def test_an_error_of_a_generator_in_a_callback_pins_nothing(live_bytes: Callable[[], int]) -> None:
    """Frames of generators do not say who has resumed them."""
    pool = mempool.MemoryPool("request", limit="64MiB")

    async def clean() -> None:
        scratch = bytes_of(MIB)
        try:
            {}[len(scratch)]
        except KeyError as error:
            raise RuntimeError("the cache is busy") from error

    def parts() -> Iterator[None]:
        scratch = bytes_of(MIB)
        yield
        raise ValueError(len(scratch))

    def busy(name: str, needed: int) -> None:
        try:
            for _ in parts():
                pass
        except ValueError as error:
            error.__traceback__ = None
        clean().send(None)

    handle = mempool.on_pressure(busy)
    try:
        for _ in range(3):
            with pytest.raises(mempool.OutOfMemoryError) as caught, mempool.use_pool(pool):
                bytes_of(100 * MIB)
            kept = caught.value.__cause__
            assert isinstance(kept, RuntimeError)
            assert isinstance(kept.__cause__, KeyError)
            assert kept.__traceback__ is kept.__cause__.__traceback__ is None
            del caught, kept
            gc.collect()
            assert live_bytes() == 0
    finally:
        handle.remove()


def test_an_error_that_is_raised_again_and_again_is_described_once(enabled: None) -> None:
    pool = mempool.MemoryPool("p", limit="1MiB")
    busy = RuntimeError("busy")

    def callback(name: str, needed: int) -> None:
        raise busy

    handle = mempool.on_pressure(callback)
    try:
        for _ in range(8):
            with pytest.raises(mempool.OutOfMemoryError), mempool.use_pool(pool):
                bytes_of(2 * MIB)
    finally:
        handle.remove()
    notes = getattr(busy, "__notes__", [])
    assert len(notes) == hasattr(busy, "add_note")
    assert all(note.count("in callback") == 1 for note in notes)
