"""CPU tensors from mempool."""

from __future__ import annotations

import os
from typing import ClassVar

from mempool import _core, _torch_cpu
from mempool._device_kind import DeviceKind, NamesEnvironment, Size, configure, reserve_of, unchanged_on_error


class _Cpu(DeviceKind):
    name = "cpu"
    is_numbered = False
    has_streams = False
    replay_backends: ClassVar = {"fake": "fake", "host": "host"}
    _device: _core.Device | None = None

    def problem(self) -> str | None:
        return None

    def is_enabled(self) -> bool:
        return _torch_cpu.is_enabled()

    def enable(
        self, limit: Size | None, soft_limit: Size | None, shared: bool = False, reserve: Size | None = None
    ) -> None:
        reserve_bytes = None if reserve is None else reserve_of(reserve, _core.usable_memory_bytes)
        device = cpu()
        if reserve_bytes is None and not self.is_enabled() and device.reserved_bytes == 0:
            reserve_bytes = device.reserve_option
        with unchanged_on_error(self, [device]):
            configure(device, _core.share_cpu, limit, soft_limit, shared, reserve_bytes)
            _torch_cpu.enable()

    def disable(self) -> None:
        _torch_cpu.disable()

    def allocator(self, index: int | None) -> _core.Device:
        """Made from ``MEMPOOL_CONF``. It serves torch only after ``enable()``."""
        if self._device is None:
            with NamesEnvironment():
                self._device = _core.cpu_device(cpu_configuration())
        return self._device

    def made(self) -> list[_core.Device]:
        return [cpu()]

    def names(self) -> list[str]:
        return [self.name]

    def whole_bytes(self, index: int) -> int:
        return _core.usable_memory_bytes()


CPU = _Cpu()


def cpu() -> _core.Device:
    return CPU.allocator(None)


def cpu_options() -> list[_core.Option]:
    """Every option: what it is, its default and what it is set to for the CPU by the environment.

    Raises:
        ConfigError: MEMPOOL_CONF does not parse.
    """
    with NamesEnvironment():
        return _core.options(cpu_configuration(), _core.usable_memory_bytes())


def cpu_configuration() -> str:
    conf = os.environ.get("MEMPOOL_CONF", "")
    # torch's own switch for huge pages under CPU tensors. What MEMPOOL_CONF says comes later and wins.
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "0":
        conf = "huge_pages:false," + conf
    return conf
