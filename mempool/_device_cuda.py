"""CUDA tensors from mempool, where this build and torch's have CUDA."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType
from typing import ClassVar

import torch

from mempool import _build, _core
from mempool._device_kind import (
    DeviceKind,
    NamesEnvironment,
    Size,
    bytes_of,
    reserve_of,
    take_reserve,
    unchanged_on_error,
)
from mempool._torch_settings import ignored_message, ignored_settings, warn_of_ignored
from mempool.errors import ConfigError, DeviceError, OutOfMemoryError

_torch_cuda: ModuleType | None = None
_import_error: ImportError | None = None  # why there is no _torch_cuda
try:
    _torch_cuda = importlib.import_module("mempool._torch_cuda")
except ImportError as error:
    _import_error = error.with_traceback(None)


def extension() -> ModuleType:
    """The compiled part. Expects that ``extension_problem()`` is None."""
    assert _torch_cuda is not None
    return _torch_cuda


class _Cuda(DeviceKind):
    name = "cuda"
    is_numbered = True
    has_streams = True
    settings_variables = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    reads_settings = True
    replay_backends: ClassVar = {"fake": "fake-device"}
    _conf = ""  # what the first enable() was given, for devices that are made later
    _was_enabled = False

    def problem(self) -> str | None:
        problem = extension_problem()
        if problem is not None:
            return problem
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        return _core.cuda_problem() or None

    def is_enabled(self) -> bool:
        return _torch_cuda is not None and bool(_torch_cuda.is_enabled())

    def enable(
        self, limit: Size | None, soft_limit: Size | None, shared: bool = False, reserve: Size | None = None
    ) -> None:
        """Raises PoolStateError while a graph is being captured, ConfigError for a limit below what is held already."""
        if limit is not None:
            bytes_of(limit, "limit")  # refused here if it does not parse
            if not self.is_enabled():
                self._check_room(limit)
        shared_limit = limit
        if shared:
            limit = None
        # Devices that exist take a limit now, before torch's own fraction is taken over, which may be lower; those that
        # torch makes later take it with their options.
        conf = []
        for key, value in (("limit", limit), ("soft_limit", soft_limit)):
            if value is not None:
                bytes_of(value, key)  # refused here if it does not parse
                conf.append(f"{key}:{value}")
        if reserve is not None:
            reserve_of(reserve, lambda: 1 << 40)
            conf.append(f"reserve:{reserve}")
        # Whoever asked for its statistics, say, has made a device before mempool was enabled.
        makes_all = bool(conf) and self._was_enabled
        known = [self.allocator(index) for index in range(torch.cuda.device_count())] if makes_all else self.made()
        was_enabled = self._was_enabled
        with unchanged_on_error(self, known, lambda: self._forget_first_conf(was_enabled)):
            for device in known:
                whole = functools.partial(self.whole_bytes, _index_of(device))
                if limit is not None:
                    device.limit = bytes_of(limit, "limit", whole)
                if soft_limit is not None:
                    device.soft_limit = bytes_of(soft_limit, "soft_limit", whole)
            self._install(",".join(conf))
            if shared:
                self._share(shared_limit)
            if reserve is not None:
                for device in known:
                    whole = functools.partial(self.whole_bytes, _index_of(device))
                    take_reserve(device, reserve_of(reserve, whole))

    def _check_room(self, limit: Size) -> None:
        """What torch's own allocator keeps of a device counts in its limit."""
        assert _torch_cuda is not None
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        held = {_index_of(device): device.held_bytes() for device in self.made()}
        for index in range(torch.cuda.device_count()):
            most = bytes_of(limit, "limit", functools.partial(self.whole_bytes, index))
            earlier = _torch_cuda.earlier_bytes(index)
            if earlier + held.get(index, 0) > most:
                raise ConfigError(
                    f"a limit of {most} bytes for device cuda:{index} is below what is held there: {earlier} bytes by "
                    f"torch's own allocator and {held.get(index, 0)} by mempool. Free tensors first. Nothing was "
                    "enabled."
                )

    def _share(self, limit: Size | None) -> None:
        text = "" if limit is None else str(limit)
        if limit is not None:
            bytes_of(limit, "limit")
            _core.share_cuda_later(text)
        for device in self.made():
            _core.share_cuda(_index_of(device), text)

    def early_problem(self) -> str | None:
        """Whether there is a device, torch says when it is used."""
        return extension_problem()

    def _install(self, conf: str) -> None:
        assert _torch_cuda is not None
        if not self._was_enabled:
            self._conf = conf
        try:
            with NamesEnvironment():
                note = _torch_cuda.enable(self._configuration(), warn_of_ignored)
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        self._was_enabled = True
        if note:
            warnings.warn(note, stacklevel=5)

    def _forget_first_conf(self, was_enabled: bool) -> None:
        """After an enable that has failed; `was_enabled`: an earlier one had not."""
        if not was_enabled:
            self._conf = ""
            self._was_enabled = False

    def _configuration(self) -> str:
        return ",".join(part for part in (os.environ.get("MEMPOOL_CONF", ""), self._conf) if part)

    def note_on_settings(self) -> str | None:
        notes = ignored_settings(self._given_settings())
        return ignored_message(notes) if notes else None

    def disable(self) -> None:
        """Raises PoolStateError while a graph is being captured."""
        if _torch_cuda is not None:
            _torch_cuda.disable()

    def allocator(self, index: int | None) -> _core.Device:
        problem = self.problem()
        if problem is not None:
            raise DeviceError(f"cuda: {problem}.")
        if index is None:
            index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
        if not 0 <= index < torch.cuda.device_count():
            raise DeviceError(f"cuda:{index}: there is no such device, torch sees {torch.cuda.device_count()}.")
        with NamesEnvironment():
            return _core.cuda_device(index, self._configuration())

    def made(self) -> list[_core.Device]:
        made = (_core.cuda_device_if_made(index) for index in range(_core.max_cuda_devices))  # asks no driver
        return [device for device in made if device is not None]

    def names(self) -> list[str]:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]

    def whole_bytes(self, index: int) -> int:
        return _core.cuda_device_bytes(index)

    def manages_virtual_memory(self, index: int) -> bool:
        return _torch_cuda is None or bool(_torch_cuda.manages_virtual_memory(index))

    def has_extension(self) -> bool:
        return _torch_cuda is not None


CUDA = _Cuda()


def _index_of(device: _core.Device) -> int:
    return int(device.name.partition(":")[2])


def extension_problem() -> str | None:
    """Why this build has no CUDA half that runs with this torch; None when it has one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    return None if _import_error is None else _build.cuda_problem(_import_error)


def cuda_library_path() -> str:
    """The path of the library for ``torch.cuda.memory.CUDAPluggableAllocator``.

    ``CUDAPluggableAllocator(mempool.cuda_library_path(), "mempool_malloc", "mempool_free")``. That class does
    not pass on statistics, snapshots and more, which ``enable("cuda")`` serves.

    Raises:
        DeviceError: this build has no CUDA half; the message says why.
    """
    problem = extension_problem()
    if problem is not None:
        raise DeviceError(f"cuda: {problem}.")
    assert _torch_cuda is not None
    assert _torch_cuda.__file__ is not None
    return _torch_cuda.__file__
