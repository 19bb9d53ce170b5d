"""What mempool asks of each kind of device that it has an allocator for: ``_device.py`` has the list of them."""

from __future__ import annotations

import contextlib
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, TypeAlias

import torch

from mempool import _core
from mempool.errors import ConfigError, DeviceError, OutOfMemoryError

Size: TypeAlias = int | str


AUTO = "auto"  # a limit that moves with what others use


class DeviceKind(ABC):
    """A kind of memory, ``name``, whose tensors can come from mempool: of a type of torch's devices, or pinned."""

    name: str
    # Several devices of the kind are told apart by an index, as in "cuda:1".
    is_numbered: bool
    # Work goes on after the call that asked for it, and each stream has blocks of its own.
    has_streams: bool
    # ``enable()`` without a device leaves it out.
    by_name_only = False
    # Variables of the environment that configure torch's own allocator: torch reads the first that is set.
    settings_variables: tuple[str, ...] = ("PYTORCH_ALLOC_CONF",)
    # Whether mempool honours any of these settings.
    reads_settings = False
    # By what users call it, the backend of the core on which a trace is replayed; the first is the default.
    replay_backends: ClassVar[Mapping[str, str]]

    @abstractmethod
    def problem(self) -> str | None:
        """Why no tensor can come from mempool; None when it can."""

    @abstractmethod
    def is_enabled(self) -> bool: ...

    @abstractmethod
    def enable(
        self, limit: Size | None, soft_limit: Size | None, shared: bool = False, reserve: Size | None = None
    ) -> None:
        """Puts mempool under new tensors. A call that raises has enabled nothing.

        ``shared``: what is held counts in the ledger of this process, and the limit is that of all in it. ``reserve``:
        bytes that are held from now on.
        """

    def enable_early(self, limit: Size | None, shared: bool = False) -> None:
        """Enables at the end of torch's import. Raises DeviceError and what ``enable`` does.

        Nothing may be asked of a driver then: children that are forked later could not use the device.
        """
        problem = self.early_problem()
        if problem is not None:
            raise DeviceError(f"{self.name}: {problem}.")
        self.enable(limit, None, shared)

    def early_problem(self) -> str | None:
        """As much of ``problem`` as is known without a driver."""
        return self.problem()

    @abstractmethod
    def disable(self) -> None:
        """Gives new tensors back to torch's allocator."""

    @abstractmethod
    def allocator(self, index: int | None) -> _core.Device:
        """That of a device, made at the first call; None means the current one. Raises DeviceError."""

    @abstractmethod
    def made(self) -> list[_core.Device]:
        """The allocators that there are already; that of the CPU always is."""

    @abstractmethod
    def names(self) -> list[str]:
        """All devices of the kind that this process sees."""

    @abstractmethod
    def whole_bytes(self, index: int) -> int:
        """What a percentage is of."""

    def note_on_settings(self) -> str | None:
        """What of torch's settings in the environment does not hold with mempool; None where all that is given does."""
        if not self._given_settings():
            return None
        return (
            "PYTORCH_ALLOC_CONF configures torch's own device allocator; mempool does not read it. "
            "Use MEMPOOL_CONF (`mempool options` lists its keys)."
        )

    def _given_settings(self) -> str:
        """Those in the environment, of the first of these variables that is there."""
        return next((os.environ[name] for name in self.settings_variables if name in os.environ), "")

    def manages_virtual_memory(self, index: int) -> bool:
        return True

    def empty(self, size: int, device: str | torch.device) -> torch.Tensor:
        """Bytes in memory of the kind, on that device of it."""
        return torch.empty(size, dtype=torch.uint8, device=device)

    def place(self, tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
        """The values of a CPU tensor in memory of the kind."""
        return tensor.to(device)


class NamesEnvironment:
    """A ConfigError that MEMPOOL_CONF is the reason for says so."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, ConfigError):
            return
        try:
            _core.options(os.environ.get("MEMPOOL_CONF", ""), 1 << 40)  # a percentage parses with any
        except ConfigError as reason:
            raise ConfigError(f"MEMPOOL_CONF: {reason}") from error


def reserve_of(value: Size, whole_bytes: Callable[[], int]) -> int:
    """Bytes to reserve; 0 for none. Raises ConfigError."""
    is_none = value in (0, "0") and not isinstance(value, bool)
    return 0 if is_none else bytes_of(value, "reserve", whole_bytes)


def take_reserve(of: _core.Device | _core.Pool, reserve_bytes: int) -> None:
    """Raises OutOfMemoryError where it cannot be had, and what the compiled part does."""
    try:
        of.reserve(reserve_bytes)
    except MemoryError as error:
        raise OutOfMemoryError(str(error)) from error


@contextlib.contextmanager
def unchanged_on_error(
    kind: DeviceKind, devices: list[_core.Device], undo: Callable[[], None] | None = None
) -> Iterator[None]:
    """Within it an error leaves these devices' limits and reservations, and whether the kind is enabled, as they were.

    ``undo`` is called then, too. The limit of a shared ledger is not put back.
    """
    was_enabled = kind.is_enabled()
    limits = [(device.limit, device.soft_limit, device.reserved_bytes) for device in devices]
    was_watching = _core.is_watching_outside()
    try:
        yield
    except BaseException:
        if not was_enabled:
            kind.disable()
        if undo is not None:
            undo()
        for device, (limit, soft_limit, reserved) in zip(devices, limits, strict=True):
            device.soft_limit = soft_limit
            if device.reserved_bytes > reserved:
                device.reserve(reserved)
            watch_outside(device, was_watching)
            with contextlib.suppress(ConfigError):  # more is held by now than a lower one allows
                device.limit = limit
        raise


def configure(
    device: _core.Device,
    share: Callable[[str], None],
    limit: Size | None,
    soft_limit: Size | None,
    shared: bool,
    reserve_bytes: int | None,
) -> None:
    """Sets what is given, of a device that has no number; ``share`` puts it into the ledger with a limit as text."""
    check_limit(limit, device.name)
    soft_bytes = None if soft_limit is None else bytes_of(soft_limit, "soft_limit")
    if shared:
        share("" if limit is None else str(limit))
        if limit is not None:
            watch_outside(device, limit == AUTO)
    elif limit is not None:
        set_device_limit(device, limit, _core.usable_memory_bytes)
    if soft_bytes is not None:
        device.soft_limit = soft_bytes
    if reserve_bytes is not None:
        take_reserve(device, reserve_bytes)


def check_limit(limit: Size | None, device: str) -> None:
    """Raises ConfigError for what is no limit of held bytes; "auto" is one of the CPU's memory."""
    if limit is None:
        return
    if limit != AUTO:
        bytes_of(limit, "limit", lambda: 1 << 40)
    elif device != "cpu":
        raise ConfigError(f"limit={AUTO!r} is for the CPU's memory, not for {device}: give bytes or a percentage.")


def set_device_limit(device: _core.Device, limit: Size | None, whole_bytes: Callable[[], int]) -> None:
    """Of held bytes. Raises ConfigError, with nothing changed."""
    check_limit(limit, device.name)
    if limit == AUTO:
        watch_outside(device, True)
        return
    value = None if limit is None else bytes_of(limit, "limit", whole_bytes)
    was_watching = device.name == "cpu" and _core.is_watching_outside()
    watch_outside(device, False)
    try:
        device.limit = value
    except ConfigError:
        watch_outside(device, was_watching)
        raise


def watch_outside(device: _core.Device, on: bool) -> None:
    """Whether the limit moves with what others use of the machine."""
    if device.name == "cpu" and (on or _core.is_watching_outside()):
        _core.watch_outside(on)


def bytes_of(value: Size, what: str, whole_bytes: Callable[[], int] = _core.usable_memory_bytes) -> int:
    """Bytes of ``4096``, ``"1.5GiB"`` or ``"50%"``, of ``whole_bytes``. Raises ConfigError."""
    if isinstance(value, str):
        # What a percentage is of takes reading several files, and a pool is made for each request.
        return _core.parse_bytes(value, whole_bytes() if "%" in value else 0)
    if isinstance(value, bool):
        raise ConfigError(f"{what} must be bytes or text such as '512MiB', not {value!r}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{what} must be whole bytes or text such as '512MiB', not {value!r}.") from None
    if not 0 < number < 2**63:
        none = " Use None for no limit." if "limit" in what else ""
        raise ConfigError(f"{what} must be at least one byte and fit 63 bits, not {number}.{none}")
    return number
