"""Streams, events, captures and graphs of the stand-in."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import control
import pytest
from cuda import (
    CAPTURED_EVENT,
    GLOBAL,
    INVALID_HANDLE,
    INVALIDATED,
    ISOLATION,
    NOT_READY,
    RELAXED,
    UNJOINED,
    UNSUPPORTED_IN_CAPTURE,
    Cuda,
    read,
    write,
)

SIZE = 4096
TO_ANY = 4  # cudaMemcpyDefault


@pytest.fixture
def cuda(standin: control.Standin) -> Cuda:
    """The calls."""
    return Cuda(standin)


@pytest.fixture
def streams(cuda: Cuda) -> Iterator[tuple[int, int]]:
    """Two streams."""
    made = cuda.stream(), cuda.stream()
    yield made
    for each in made:
        assert cuda.call("cudaStreamDestroy", each) == 0


@pytest.fixture
def blocks(cuda: Cuda) -> Iterator[tuple[int, int]]:
    """Two ranges of device memory, zeros."""
    made = cuda.make("cudaMalloc", SIZE), cuda.make("cudaMalloc", SIZE)
    for each in made:
        write(each, bytes(SIZE))
    yield made
    for each in made:
        assert cuda.call("cudaFree", each) == 0


def fill(cuda: Cuda, block: int, value: int, stream: int) -> int:
    """The error of a fill that is put into a stream."""
    return cuda.call("cudaMemsetAsync", block, value, SIZE, stream)


def test_a_held_stream_keeps_the_order(
    cuda: Cuda, standin: control.Standin, streams: tuple[int, int], blocks: tuple[int, int]
) -> None:
    stream, block = streams[0], blocks[0]
    with standin.held(stream):
        for value in (1, 2, 3):
            assert fill(cuda, block, value, stream) == 0
        assert read(block, 1) == b"\0"
        assert standin.pending(stream) == 3
        assert cuda.call("cudaStreamQuery", stream) == NOT_READY
        assert standin.step(stream) == 1
        assert read(block, 1) == b"\1"
        assert standin.step(stream, 5) == 2
        assert read(block, 1) == b"\3"
        assert fill(cuda, block, 4, stream) == 0
        assert cuda.call("cudaStreamSynchronize", stream) == 0  # time passes for a caller that waits
        assert read(block, 1) == b"\4"
        assert fill(cuda, block, 5, stream) == 0
    assert read(block, 1) == b"\5"
    assert cuda.call("cudaStreamQuery", stream) == 0


def test_an_event_stands_for_its_latest_record(cuda: Cuda, standin: control.Standin, streams: tuple[int, int]) -> None:
    stream, event = streams[0], cuda.event()
    assert cuda.call("cudaEventQuery", event) == 0  # never recorded
    with standin.held(stream):
        assert cuda.call("cudaEventRecord", event, stream) == 0
        assert cuda.call("cudaEventQuery", event) == NOT_READY
        assert cuda.call("cudaEventRecord", event, stream) == 0
        standin.step(stream)
        assert cuda.call("cudaEventQuery", event) == NOT_READY  # the first record alone has happened
        standin.step(stream)
        assert cuda.call("cudaEventQuery", event) == 0
        assert cuda.call("cudaEventRecord", event, stream) == 0
        assert cuda.call("cudaEventSynchronize", event) == 0
        assert cuda.call("cudaEventQuery", event) == 0
    assert cuda.call("cudaEventDestroy", event) == 0


def test_a_wait_is_for_the_record_that_was_there(
    cuda: Cuda, standin: control.Standin, streams: tuple[int, int], blocks: tuple[int, int]
) -> None:
    (first, second), (source, target) = streams, blocks
    event = cuda.event()
    with standin.held(first):
        assert fill(cuda, source, 7, first) == 0
        assert cuda.call("cudaEventRecord", event, first) == 0
        assert cuda.call("cudaStreamWaitEvent", second, event, 0) == 0
        assert cuda.call("cudaMemcpyAsync", target, source, SIZE, TO_ANY, second) == 0
        assert fill(cuda, source, 9, first) == 0
        assert cuda.call("cudaEventRecord", event, first) == 0  # not what the second stream waits for
        assert cuda.call("cudaEventDestroy", event) == 0  # what is under way goes on
        assert read(target, 1) == b"\0"
        standin.step(first, 2)
        assert read(target, 1) == b"\7"
        assert standin.pending(second) == 0
    assert read(source, 1) == b"\x09"


def test_whoever_waits_for_a_stream_waits_for_what_it_waits_for(
    cuda: Cuda, standin: control.Standin, streams: tuple[int, int], blocks: tuple[int, int]
) -> None:
    (first, second), (source, target) = streams, blocks
    event = cuda.event()
    with standin.held(first):
        assert fill(cuda, source, 7, first) == 0
        assert cuda.call("cudaEventRecord", event, first) == 0
        assert fill(cuda, source, 8, first) == 0
        assert cuda.call("cudaStreamWaitEvent", second, event, 0) == 0
        assert cuda.call("cudaMemcpyAsync", target, source, SIZE, TO_ANY, second) == 0
        assert cuda.call("cudaStreamSynchronize", second) == 0
        assert read(target, 1) == b"\7"
        assert standin.pending(first) == 1  # what comes after the event has not happened
    assert cuda.call("cudaEventDestroy", event) == 0


def test_a_check_finds_memory_that_was_written_too_early(
    cuda: Cuda, standin: control.Standin, streams: tuple[int, int], blocks: tuple[int, int]
) -> None:
    (first, second), (block, _) = streams, blocks
    before = standin.violations()
    for is_early in (False, True):
        with standin.held(first):
            standin.write_later(first, block, SIZE, seed=1)
            standin.check_later(first, block, SIZE, seed=1)
            if is_early:
                standin.step(first)
                standin.write_later(second, block, SIZE, seed=2)
        if not is_early:
            standin.write_later(second, block, SIZE, seed=2)
        assert standin.violations() == before + int(is_early)


def test_a_graph_replays_what_was_captured(cuda: Cuda, streams: tuple[int, int], blocks: tuple[int, int]) -> None:
    (first, second), (source, target) = streams, blocks
    event = cuda.event()
    assert cuda.call("cudaStreamBeginCapture", first, GLOBAL) == 0
    assert fill(cuda, source, 3, first) == 0
    assert cuda.call("cudaEventRecord", event, first) == 0
    assert cuda.call("cudaStreamWaitEvent", second, event, 0) == 0  # the second stream joins
    assert cuda.call("cudaMemcpyAsync", target, source, SIZE, TO_ANY, second) == 0
    assert cuda.call("cudaEventQuery", event) == UNSUPPORTED_IN_CAPTURE
    assert cuda.call("cudaStreamEndCapture", first, ctypes.byref(ctypes.c_uint64())) == INVALIDATED

    assert cuda.call("cudaStreamBeginCapture", first, RELAXED) == 0
    assert fill(cuda, source, 3, first) == 0
    assert cuda.call("cudaEventRecord", event, first) == 0
    assert cuda.call("cudaStreamWaitEvent", second, event, 0) == 0
    assert cuda.call("cudaMemcpyAsync", target, source, SIZE, TO_ANY, second) == 0
    assert cuda.call("cudaEventQuery", event) == CAPTURED_EVENT
    back = cuda.event()
    assert cuda.call("cudaEventRecord", back, second) == 0
    assert cuda.call("cudaStreamWaitEvent", first, back, 0) == 0
    graph = ctypes.c_uint64()
    assert cuda.call("cudaStreamEndCapture", first, ctypes.byref(graph)) == 0
    assert read(target, 1) == b"\0"  # nothing has happened yet
    ready = cuda.make("cudaGraphInstantiateWithFlags", graph.value, 0)
    assert cuda.call("cudaGraphDestroy", graph.value) == 0
    for _ in range(2):
        write(target, bytes(SIZE))
        assert cuda.call("cudaGraphLaunch", ready, first) == 0
        assert read(target, SIZE) == b"\3" * SIZE
    assert cuda.call("cudaGraphExecDestroy", ready) == 0
    for each in (event, back):
        assert cuda.call("cudaEventDestroy", each) == 0


def test_a_branch_that_does_not_come_back_spoils_the_capture(cuda: Cuda, streams: tuple[int, int]) -> None:
    first, second = streams
    event = cuda.event()
    block = cuda.make("cudaMalloc", SIZE)
    assert cuda.call("cudaStreamBeginCapture", first, GLOBAL) == 0
    assert cuda.call("cudaEventRecord", event, first) == 0
    assert cuda.call("cudaStreamWaitEvent", second, event, 0) == 0
    assert fill(cuda, block, 1, second) == 0
    assert cuda.call("cudaStreamEndCapture", first, ctypes.byref(ctypes.c_uint64())) == UNJOINED
    assert cuda.call("cudaEventDestroy", event) == 0
    assert cuda.call("cudaFree", block) == 0


def test_what_a_capture_forbids(cuda: Cuda, standin: control.Standin, streams: tuple[int, int]) -> None:
    first, second = streams
    assert cuda.call("cudaStreamBeginCapture", first, GLOBAL) == 0
    assert cuda.call("cudaMalloc", ctypes.byref(ctypes.c_uint64()), 1) == UNSUPPORTED_IN_CAPTURE
    assert cuda.call("cudaStreamEndCapture", first, ctypes.byref(ctypes.c_uint64())) == INVALIDATED
    # A thread that says it knows what it does may go on.
    assert cuda.call("cudaStreamBeginCapture", first, GLOBAL) == 0
    mode = ctypes.c_int(RELAXED)
    assert cuda.call("cudaThreadExchangeStreamCaptureMode", ctypes.byref(mode)) == 0
    block = cuda.make("cudaMalloc", 1)
    assert cuda.call("cudaThreadExchangeStreamCaptureMode", ctypes.byref(mode)) == 0
    assert mode.value == RELAXED
    # Work outside of a capture cannot be waited for in it.
    event = cuda.event()
    assert cuda.call("cudaEventRecord", event, second) == 0
    assert cuda.call("cudaStreamWaitEvent", first, event, 0) == ISOLATION
    assert cuda.call("cudaStreamEndCapture", first, ctypes.byref(ctypes.c_uint64())) == INVALIDATED
    assert cuda.call("cudaEventDestroy", event) == 0
    assert cuda.call("cudaFree", block) == 0


def test_freeing_waits_for_the_work_before(cuda: Cuda, standin: control.Standin, streams: tuple[int, int]) -> None:
    stream = streams[0]
    block = cuda.make("cudaMalloc", SIZE)
    before = standin.violations()
    with standin.held(stream):
        standin.write_later(stream, block, SIZE, seed=1)
        standin.check_later(stream, block, SIZE, seed=1)
        assert cuda.call("cudaFree", block) == 0
        assert standin.pending(stream) == 0
    assert standin.violations() == before


def test_a_destroyed_stream_is_invalid_and_its_work_goes_on(
    cuda: Cuda, standin: control.Standin, blocks: tuple[int, int]
) -> None:
    stream, event = cuda.stream(), cuda.event()
    standin._checked("hold", stream, 1)
    assert fill(cuda, blocks[0], 7, stream) == 0
    assert cuda.call("cudaEventRecord", event, stream) == 0
    assert cuda.call("cudaStreamDestroy", stream) == 0
    assert read(blocks[0], SIZE) == bytes(SIZE)
    assert cuda.call("cudaEventQuery", event) == NOT_READY
    assert cuda.call("cudaEventRecord", event, stream) == INVALID_HANDLE
    assert cuda.call("cudaStreamDestroy", stream) == INVALID_HANDLE
    assert cuda.stream_handles(8).isdisjoint({stream})  # not before its work is done
    assert cuda.call("cudaDeviceSynchronize") == 0
    assert cuda.call("cudaEventQuery", event) == 0
    assert read(blocks[0], SIZE) == bytes([7]) * SIZE
    assert cuda.call("cudaEventDestroy", event) == 0
