"""Devices and sizes: what users write for them becomes what the compiled part takes."""

from __future__ import annotations

import importlib
import operator
import os
from types import ModuleType
from typing import TypeAlias

import torch

from mempool import _build, _core, _torch_cpu
from mempool.errors import ConfigError, DeviceError, NotEnabledError

_torch_cuda: ModuleType | None = None
_import_error: ImportError | None = None  # why there is no _torch_cuda
try:
    _torch_cuda = importlib.import_module("mempool._torch_cuda")
except ImportError as error:
    _import_error = error.with_traceback(None)

Device: TypeAlias = str | int | torch.device | None
Size: TypeAlias = int | str


def parse_device(device: str | int | torch.device) -> torch.device:
    """A CPU or CUDA device; a number is a CUDA device, as in torch.cuda. Raises ConfigError for anything else."""
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {device!r}: mempool knows 'cpu' and 'cuda'.") from error
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"mempool has no allocator for device {device!r}: it knows 'cpu' and 'cuda'.")
    return found


def cuda_problem() -> str | None:
    """Why no CUDA tensor can come from mempool; None when it can."""
    problem = _extension_problem()
    if problem is not None:
        return problem
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return _core.cuda_problem() or None


def _extension_problem() -> str | None:
    """Why this build has no CUDA half that runs with this torch; None when it has one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    return None if _import_error is None else _build.cuda_problem(_import_error)


def is_cpu_enabled() -> bool:
    return _torch_cpu.is_enabled()


def is_cuda_enabled() -> bool:
    return _torch_cuda is not None and bool(_torch_cuda.is_installed())


def allocator(device: Device = None) -> _core.Device:
    """The allocator of a device; None means the only one that is enabled."""
    if device is not None:
        found = parse_device(device)
        return cpu() if found.type == "cpu" else cuda(found.index)
    if is_cpu_enabled() and is_cuda_enabled():
        raise DeviceError("mempool is enabled for cpu and for cuda: name the device.")
    if is_cuda_enabled():
        return cuda(None)
    if is_cpu_enabled():
        return cpu()
    raise DeviceError("no device is enabled: call mempool.enable() first, or name the device.")


def require_enabled(device: str, what: str) -> None:
    """Raises NotEnabledError where new tensors of the device do not come from mempool; `what` begins its message."""
    kind = device.partition(":")[0]
    if is_cpu_enabled() if kind == "cpu" else is_cuda_enabled():
        return
    raise NotEnabledError(
        f"{what}: mempool is not enabled for {kind} in this process, so no block would be charged and no limit kept. "
        f'Call mempool.enable("{kind}") first, in each process that is spawned too, or run the script by `mempool run`.'
    )


_cpu: _core.Device | None = None


def cpu() -> _core.Device:
    """The CPU allocator, made at the first call from ``MEMPOOL_CONF``. It serves torch only after ``enable()``."""
    global _cpu
    if _cpu is None:
        with _NamesEnvironment():
            _cpu = _core.cpu_device(cpu_configuration())
    return _cpu


def cuda(index: int | None) -> _core.Device:
    """The allocator of a CUDA device, made at the first call; None means torch's current one.

    Raises:
        DeviceError: there is no CUDA, or no device of that index; the message says why.
    """
    problem = cuda_problem()
    if problem is not None:
        raise DeviceError(f"cuda: {problem}.")
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    if not 0 <= index < torch.cuda.device_count():
        raise DeviceError(f"cuda:{index}: there is no such device, torch sees {torch.cuda.device_count()}.")
    with _NamesEnvironment():
        return _core.cuda_device(index, cuda_configuration())


def cuda_if_made(index: int) -> _core.Device | None:
    """The allocator of a CUDA device; None if no call has made it yet."""
    return _core.cuda_device_if_made(index)


def install_cuda(conf: str) -> None:
    """Puts mempool under CUDA tensors. Raises DeviceError when torch has initialized CUDA already."""
    assert _torch_cuda is not None
    global _cuda_conf
    if not is_cuda_enabled():
        _cuda_conf = conf
    try:
        with _NamesEnvironment():
            _torch_cuda.install(cuda_configuration())
    except _torch_cuda.PoolStateError as error:
        raise DeviceError(f"cuda: {error}") from error


_cuda_conf = ""  # the options that enable() was given, for devices that are made later


class _NamesEnvironment:
    """Makes a ConfigError say that MEMPOOL_CONF is its reason, where it is."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, ConfigError):
            return
        try:
            _core.options(os.environ.get("MEMPOOL_CONF", ""), 1 << 40)  # a percentage parses with any
        except ConfigError as reason:
            raise ConfigError(f"MEMPOOL_CONF: {reason}") from error


def cpu_options() -> list[_core.Option]:
    """Every option: its key, type, meaning, default, and the value that the environment gives it for the CPU.

    Raises:
        ConfigError: MEMPOOL_CONF does not parse.
    """
    with _NamesEnvironment():
        return _core.options(cpu_configuration(), _core.usable_memory_bytes())


def cpu_configuration() -> str:
    conf = os.environ.get("MEMPOOL_CONF", "")
    # torch's own switch for huge pages under CPU tensors. What MEMPOOL_CONF says comes later and wins.
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "0":
        conf = "huge_pages:false," + conf
    return conf


def cuda_configuration() -> str:
    return ",".join(part for part in (os.environ.get("MEMPOOL_CONF", ""), _cuda_conf) if part)


def cuda_library_path() -> str:
    """The path of the library for ``torch.cuda.memory.CUDAPluggableAllocator``.

    ``CUDAPluggableAllocator(mempool.cuda_library_path(), "mempool_malloc", "mempool_free")``. That class does
    not pass on statistics, snapshots and more, which ``enable("cuda")`` serves.

    Raises:
        DeviceError: this build has no CUDA half; the message says why.
    """
    problem = _extension_problem()
    if problem is not None:
        raise DeviceError(f"cuda: {problem}.")
    assert _torch_cuda is not None
    assert _torch_cuda.__file__ is not None
    return _torch_cuda.__file__


def size(value: Size, what: str, of: _core.Device | None = None) -> int:
    """Bytes of ``4096``, ``"1.5GiB"`` or ``"50%"`` (of what the device has, else of usable memory).

    Raises ConfigError.
    """
    if isinstance(value, str):
        # What a percentage is of takes reading several files, and a pool is made for each request.
        return _core.parse_bytes(value, whole_bytes(of) if "%" in value else 0)
    if isinstance(value, bool):
        raise ConfigError(f"{what} must be bytes or text such as '512MiB', not {value!r}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{what} must be whole bytes or text such as '512MiB', not {value!r}.") from None
    if not 0 < number < 2**63:
        raise ConfigError(f"{what} must be at least one byte and fit 63 bits, not {number}.{_none_for(what)}")
    return number


def _none_for(what: str) -> str:
    return " Use None for no limit." if "limit" in what else ""


def whole_bytes(handle: _core.Device | None) -> int:
    """The bytes that a percentage is of: the device's; with None, the machine's memory that this process may use."""
    kind, _, index = handle.name.partition(":") if handle is not None else ("cpu", "", "")
    return _core.cuda_device_bytes(int(index)) if kind == "cuda" else _core.usable_memory_bytes()


def optional_size(value: Size | None, what: str, of: _core.Device | None = None) -> int | None:
    return None if value is None else size(value, what, of)
