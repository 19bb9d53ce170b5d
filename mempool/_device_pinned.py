"""Pinned host memory from mempool: that of ``pin_memory``, which a GPU copies from and to while the program goes on."""

from __future__ import annotations

import os
from typing import ClassVar

import torch

from mempool import _core
from mempool._device_cuda import CUDA, extension, extension_problem
from mempool._device_kind import DeviceKind, NamesEnvironment, Size, configure, reserve_of, unchanged_on_error
from mempool._torch_settings import ignored_pinned_settings
from mempool.errors import DeviceError


class _Pinned(DeviceKind):
    name = "pinned"
    is_numbered = False
    has_streams = False  # a block belongs to no stream; those that use it are waited for
    by_name_only = True
    settings_variables = CUDA.settings_variables
    replay_backends: ClassVar = {"fake": "fake-pinned"}

    def problem(self) -> str | None:
        return CUDA.problem()

    def early_problem(self) -> str | None:
        return CUDA.early_problem()

    def is_enabled(self) -> bool:
        return extension_problem() is None and bool(extension().is_pinned_enabled())

    def enable(
        self, limit: Size | None, soft_limit: Size | None, shared: bool = False, reserve: Size | None = None
    ) -> None:
        """Raises PoolStateError the first time while a graph is being captured."""
        reserve_bytes = None if reserve is None else reserve_of(reserve, _core.usable_memory_bytes)
        device = self._device()
        with unchanged_on_error(self, [device]):
            configure(device, _core.share_pinned, limit, soft_limit, shared, reserve_bytes)
            extension().enable_pinned()

    def disable(self) -> None:
        if self.is_enabled():
            extension().disable_pinned()

    def allocator(self, index: int | None) -> _core.Device:
        problem = extension_problem()
        if problem is not None:
            raise DeviceError(f"pinned: {problem}.")
        return self._device()

    def _device(self) -> _core.Device:
        with NamesEnvironment():
            return _core.pinned_device(os.environ.get("MEMPOOL_CONF", ""))

    def made(self) -> list[_core.Device]:
        made = _core.pinned_device_if_made()
        return [] if made is None else [made]

    def names(self) -> list[str]:
        return [self.name]

    def whole_bytes(self, index: int) -> int:
        return _core.usable_memory_bytes()

    def note_on_settings(self) -> str | None:
        notes = ignored_pinned_settings(self._given_settings())
        if not notes:
            return None
        return f"mempool serves pinned memory, and these settings of torch's own allocator do not hold: {notes}."

    def manages_virtual_memory(self, index: int) -> bool:
        return False

    def empty(self, size: int, device: str | torch.device) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)

    def place(self, tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
        return tensor.pin_memory()


PINNED = _Pinned()
