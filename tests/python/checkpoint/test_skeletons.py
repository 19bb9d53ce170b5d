"""``meta_parameters``: which parameters are on the meta device, by thread and by task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import Queue

import pytest
import torch
from torch import nn

from mempool.compress import meta_parameters


class OwnParameter(nn.Parameter):
    pass


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = OwnParameter(torch.ones(3, 2), requires_grad=False)
        self.weight.note = "kept"
        self.again = self.weight
        self.register_parameter("absent", None)
        self.register_buffer("steps", torch.arange(4) * 2)


def is_on_meta() -> bool:
    return nn.Linear(2, 2).weight.is_meta


def test_parameters_are_on_meta_and_all_else_is_as_it_was() -> None:
    with meta_parameters():
        model = WithBuffers()
        lazy = nn.LazyLinear(3)
    assert model.weight.is_meta
    assert type(model.weight) is OwnParameter
    assert model.weight.note == "kept"
    assert not model.weight.requires_grad
    assert model.again is model.weight
    assert model.absent is None
    assert model.steps.tolist() == [0, 2, 4, 6]
    assert isinstance(lazy.weight, nn.UninitializedParameter)
    assert not lazy.weight.is_meta


def test_nested_contexts_end_one_by_one() -> None:
    shared = nn.Parameter(torch.ones(3))
    outer, inner = nn.Module(), nn.Module()
    with meta_parameters():
        with meta_parameters():
            assert is_on_meta()
            inner.weight = shared
        assert is_on_meta()
        outer.weight = shared
    assert not is_on_meta()
    assert inner.weight is outer.weight


class Worker:
    """A thread that runs what it is given, one after the other."""

    def __init__(self) -> None:
        self._calls: Queue[Callable[[], object] | None] = Queue()
        self._results: Queue[object] = Queue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._results.put(call())

    def __call__(self, call: Callable[[], object]) -> object:
        self._calls.put(call)
        return self._results.get(timeout=60)

    def end(self) -> None:
        self._calls.put(None)
        self._thread.join()


@pytest.mark.parametrize("first_out", [0, 1])
def test_each_thread_has_its_own(first_out: int) -> None:
    workers = [Worker(), Worker()]
    stacks = [ExitStack(), ExitStack()]
    try:
        workers[0](lambda: stacks[0].enter_context(meta_parameters()))
        assert workers[0](is_on_meta)
        assert not workers[1](is_on_meta)
        assert not is_on_meta()
        workers[1](lambda: stacks[1].enter_context(meta_parameters()))
        assert workers[0](is_on_meta)
        assert workers[1](is_on_meta)
        workers[first_out](stacks[first_out].close)
        assert not workers[first_out](is_on_meta)
        assert workers[1 - first_out](is_on_meta)
        workers[1 - first_out](stacks[1 - first_out].close)
        assert not workers[1 - first_out](is_on_meta)
        assert not is_on_meta()
    finally:
        for worker in workers:
            worker.end()


def test_threads_that_enter_and_leave_do_not_disturb_each_other() -> None:
    wrong: list[str] = []
    start = threading.Barrier(4)

    def build(inside: bool) -> None:
        try:
            start.wait(timeout=60)
            for _ in range(200):
                with ExitStack() as stack:
                    if inside:
                        stack.enter_context(meta_parameters())
                    if is_on_meta() is not inside:
                        wrong.append(f"inside={inside}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=build, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_another_task_of_the_thread_is_not_in_it() -> None:
    async def main() -> tuple[bool, bool]:
        entered, seen = asyncio.Event(), asyncio.Event()

        async def builder() -> bool:
            with meta_parameters():
                entered.set()
                await seen.wait()
                return is_on_meta()

        async def other() -> bool:
            await entered.wait()
            on_meta = is_on_meta()
            seen.set()
            return on_meta

        one, two = await asyncio.gather(builder(), other())
        return one, two

    assert asyncio.run(main()) == (True, False)


def test_torch_is_as_it_was() -> None:
    register = nn.Module.register_parameter
    with meta_parameters():
        assert nn.Module.register_parameter is register
