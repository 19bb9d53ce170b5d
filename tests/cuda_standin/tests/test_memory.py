"""Memory of the stand-in: capacity, virtual memory, aliases, failures."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal

import control
import pytest
from cuda import GRANULE, Cuda, read, write


@pytest.fixture
def cuda(standin: control.Standin) -> Cuda:
    """The calls."""
    return Cuda(standin)


def faults(address: int) -> bool:
    """Whether a child that reads the address dies of it."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        read(address, 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV


def test_capacity_is_a_promise_of_both_ways_to_allocate(cuda: Cuda, standin: control.Standin) -> None:
    standin.set_capacity(3 * GRANULE)
    first = cuda.make("cudaMalloc", 1)
    assert standin.used() == GRANULE
    error, handle = cuda.create(2 * GRANULE)
    assert error == 0
    assert cuda.create(GRANULE)[0] == control.OUT_OF_MEMORY
    assert cuda.call("cuMemRelease", handle) == 0
    error, handle = cuda.create(GRANULE)
    assert error == 0
    assert standin.peak() == 3 * GRANULE
    assert cuda.call("cudaFree", first) == 0
    assert cuda.call("cudaFree", first) == control.INVALID_VALUE
    assert cuda.call("cuMemRelease", handle) == 0


def test_a_handle_at_two_addresses_is_the_same_memory(cuda: Cuda) -> None:
    here, there = cuda.reserve(2 * GRANULE), cuda.reserve(GRANULE)
    _, handle = cuda.create(GRANULE)
    assert cuda.map(here + GRANULE, GRANULE, handle) == 0
    write(here + GRANULE, b"carried along")
    assert cuda.map(there, GRANULE, handle) == 0
    assert read(there, 13) == b"carried along"
    write(there, b"C")
    assert read(here + GRANULE, 13) == b"Carried along"
    assert cuda.call("cuMemUnmap", here + GRANULE, GRANULE) == 0
    assert read(there, 13) == b"Carried along"
    assert cuda.call("cuMemRelease", handle) == 0  # lives on while it is mapped
    assert read(there, 1) == b"C"
    assert cuda.call("cuMemUnmap", there, GRANULE) == 0
    for address, size in ((here, 2 * GRANULE), (there, GRANULE)):
        assert cuda.call("cuMemAddressFree", address, size) == 0


def test_what_the_driver_refuses(cuda: Cuda) -> None:
    space = cuda.reserve(4 * GRANULE)
    _, handle = cuda.create(2 * GRANULE)
    _, other = cuda.create(GRANULE)
    assert cuda.map(space, GRANULE, handle) != 0  # in part
    assert cuda.map(space + 4096, 2 * GRANULE, handle) != 0  # unaligned
    assert cuda.map(space + 3 * GRANULE, 2 * GRANULE, handle) != 0  # past the end
    assert cuda.map(space + GRANULE, 2 * GRANULE, handle) == 0
    assert cuda.map(space + 2 * GRANULE, GRANULE, other) != 0  # over another
    assert cuda.map(space, GRANULE, other) == 0
    assert cuda.call("cuMemUnmap", space + GRANULE, GRANULE) != 0  # half of a handle
    assert cuda.call("cuMemAddressFree", space, 4 * GRANULE) != 0  # in use
    assert cuda.call("cuMemUnmap", space, 3 * GRANULE) == 0  # several at once
    assert cuda.call("cuMemRelease", handle) == 0
    assert cuda.call("cuMemRelease", handle) != 0
    assert cuda.call("cuMemRelease", other) == 0
    assert cuda.call("cuMemAddressFree", space, 2 * GRANULE) != 0  # not as it was reserved
    assert cuda.call("cuMemAddressFree", space, 4 * GRANULE) == 0
    assert cuda.create(GRANULE + 4096)[0] != 0
    assert cuda.create(GRANULE, device=7)[0] != 0


def test_an_access_where_nothing_is_mapped_faults(cuda: Cuda) -> None:
    space = cuda.reserve(GRANULE)
    _, handle = cuda.create(GRANULE)
    assert faults(space)
    assert cuda.call("cuMemMap", space, GRANULE, 0, handle, 0) == 0
    assert faults(space)  # mapped, but not accessible yet
    assert cuda.call("cuMemUnmap", space, GRANULE) == 0
    assert cuda.map(space, GRANULE, handle) == 0
    assert not faults(space)
    assert cuda.call("cuMemUnmap", space, GRANULE) == 0
    assert faults(space)
    assert cuda.call("cuMemRelease", handle) == 0
    assert cuda.call("cuMemAddressFree", space, GRANULE) == 0


def test_a_shareable_handle_is_the_same_memory_for_whoever_imports_it(cuda: Cuda, standin: control.Standin) -> None:
    space = cuda.reserve(2 * GRANULE)
    _, handle = cuda.create(GRANULE, shareable=True)
    assert cuda.map(space, GRANULE, handle) == 0
    descriptor = cuda.make("cuMemExportToShareableHandle", handle, 1, 0) & 0xFFFFFFFF
    imported = cuda.make("cuMemImportFromShareableHandle", descriptor, 1)
    os.close(descriptor)
    assert cuda.map(space + GRANULE, GRANULE, imported) == 0
    write(space + GRANULE, b"shared")
    assert read(space, 6) == b"shared"
    assert standin.used() == GRANULE
    assert cuda.call("cuMemUnmap", space, 2 * GRANULE) == 0
    for each in (handle, imported):
        assert cuda.call("cuMemRelease", each) == 0
    assert cuda.call("cuMemAddressFree", space, 2 * GRANULE) == 0


def test_the_nth_call_of_a_kind_fails_once(cuda: Cuda, standin: control.Standin) -> None:
    standin.fail("cudaMalloc", nth=2)
    blocks = [cuda.make("cudaMalloc", 100)]
    assert cuda.call("cudaMalloc", ctypes.byref(ctypes.c_uint64()), 100) == control.OUT_OF_MEMORY
    blocks.append(cuda.make("cudaMalloc", 100))
    assert standin.count("cudaMalloc") == 3
    with standin.logged() as calls:
        for block in blocks:
            assert cuda.call("cudaFree", block) == 0
    assert [line.split("(")[0] for line in calls] == ["cudaFree", "cudaFree"]
    assert standin.counts() == {"cudaMalloc": 3, "cudaFree": 2}


def test_latency_is_charged_for_each_call(cuda: Cuda, standin: control.Standin) -> None:
    standin.set_latency("cudaMalloc", 1000)
    for _ in range(3):
        assert cuda.call("cudaFree", cuda.make("cudaMalloc", 1)) == 0
    assert standin.charged_ns() == 3000


def test_registered_memory_is_pinned_and_copied_within_its_registration(cuda: Cuda, standin: control.Standin) -> None:
    page = 4096
    buffer = ctypes.create_string_buffer(5 * page)
    start = (ctypes.addressof(buffer) + page - 1) // page * page
    target = cuda.make("cudaMalloc", 4 * page)
    before = standin.pinned()
    assert cuda.call("cuMemHostRegister_v2", start, 2 * page, 3) == 0
    assert (
        cuda.call("cuMemHostRegister_v2", start + page, page, 3) == cuda.call("cudaHostRegister", start, page, 0) != 0
    )
    assert cuda.call("cuMemHostRegister_v2", start + 2 * page, 2 * page, 3) == 0
    assert standin.pinned() - before == 4 * page
    assert cuda.call("cudaMemcpyAsync", target, start + page, page, 1, 0) == 0
    assert cuda.call("cudaMemcpyAsync", target, start + page, page + 1, 1, 0) == control.INVALID_VALUE
    assert cuda.call("cudaMemcpy", start, target, 3 * page, 2) == control.INVALID_VALUE
    assert cuda.call("cuMemHostUnregister", start) == 0
    assert cuda.call("cuMemHostUnregister", start) != 0
    assert cuda.call("cuMemHostUnregister", start + 2 * page) == 0
    assert standin.pinned() == before
    assert cuda.call("cudaFree", target) == 0
