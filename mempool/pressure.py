"""Callbacks that free memory before an allocation fails, and the facts of one that failed."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import re
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from mempool import _core
from mempool.errors import ConfigError, OutOfMemoryError

Callback: TypeAlias = Callable[[str, int], object]

_log = logging.getLogger("mempool")
_log.addHandler(logging.NullHandler())  # a library stays silent until its user asks for its log
_lock = threading.RLock()  # re-entrant: a finalizer that runs under it may remove a callback
_callbacks: list[PressureHandle] = []
# Errors that callbacks raised, by id, so that oom_info() can hand out the exception itself. The oldest go first.
_errors: OrderedDict[int, BaseException] = OrderedDict()
_error_ids = itertools.count(1)
_MOST_ERRORS = 64


class PressureHandle:
    """What :func:`on_pressure` returns: ``remove()`` takes the callback away."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    @property
    def callback(self) -> Callback:
        return self._callback

    def remove(self) -> None:
        """Takes the callback away. Without an effect the second time."""
        with _lock:
            if self in _callbacks:
                _callbacks.remove(self)
            if not _callbacks:
                _core.set_pressure_handler(None)


def on_pressure(callback: Callback) -> PressureHandle:
    """Has ``callback(pool_name, needed_bytes)`` called when memory is short.

    It runs on the thread that allocates, charged to no pool: once before an allocation is refused (which is then tried
    again), and once each time a soft limit is crossed from below. It may free tensors, allocate, and call mempool; an
    allocation of its own that fails does not call the callbacks again. An error that it raises is logged; when the
    allocation then fails, the error is named in the message, is ``oom_info(exc)["callback_error"]``, and becomes the
    cause of the out-of-memory error where that leaves a ``use_pool``, ``in_pool`` or ``bind``.
    """
    if not callable(callback):
        raise ConfigError(f"on_pressure wants a function of a pool's name and a number of bytes, not {callback!r}.")
    handle = PressureHandle(callback)
    with _lock:
        _callbacks.append(handle)
        _core.set_pressure_handler(_run_callbacks)
    return handle


def _run_callbacks(pool: str, needed_bytes: int, failing: bool) -> tuple[int, str, int]:
    with _lock:
        handles = list(_callbacks)
    handled = sys.exc_info()[1]  # what the program was just dealing with: no part of a callback's error
    first_error = ""
    first_id = 0
    for handle in handles:
        try:
            handle.callback(pool, needed_bytes)
        except BaseException as error:  # the allocation goes on whatever a callback does
            if isinstance(error, KeyboardInterrupt):
                raise  # meant for the program: the compiled side has it come again once the allocation is over
            _log.warning("a pressure callback raised %s", _text_of(error), exc_info=not failing)
            if first_id == 0:
                first_error, first_id = _text_of(error), _keep(error, handled)
    return len(handles), first_error, first_id


def _text_of(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:  # it is whoever wrote the error's class that is at fault
        return type(error).__name__


def _keep(error: BaseException, handled: BaseException | None) -> int:
    """An id for the error that no other process gives out; the error itself is kept, and no frame with it.

    A frame refers to those that called it, and so to the tensors of the request that was refused. `handled`: what was
    being handled when the callbacks were called, which Python has put behind what they raise.
    """
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note("".join(traceback.format_exception(error)).rstrip())
    is_plain = _drop_frames(error, handled, set())
    with _lock:
        error_id = (os.getpid() << 32) | (next(_error_ids) & 0xFFFFFFFF)
        if is_plain:
            _errors[error_id] = error
        while len(_errors) > _MOST_ERRORS:
            _errors.popitem(last=False)
    return error_id


def _drop_frames(error: BaseException | None, handled: BaseException | None, seen: set[int]) -> bool:
    """Takes the frames from an error and from those that it came of or holds, as far as callbacks raised them.

    False if one of them carries a tensor, which must not be kept with it.
    """
    if error is None or id(error) in seen:
        return True
    seen.add(id(error))
    error.__traceback__ = None
    if isinstance(error, (AttributeError, NameError)):
        error.obj = None  # type: ignore[union-attr]
    if error.__context__ is handled:
        error.__context__ = None
    if error.__cause__ is handled:
        error.__cause__ = None
    carried = (*error.args, *vars(error).values(), getattr(error, "value", None))
    is_plain = not any(isinstance(value, torch.Tensor) for value in carried)
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        is_plain &= _drop_frames(other, handled, seen)
    return is_plain


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _core.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_core.retire_hooks)


# A line of its own, and the last one: what stands before it may quote the message of another error.
_FIELDS = re.compile(
    r"^\[mempool\.oom reason=(?P<reason>\w+) device=(?P<device>\S+) requested=(?P<requested>\d+) "
    r"allocated=(?P<allocated>\d+) limit=(?P<limit>\d+|none) held=(?P<held>\d+) largest_free=(?P<largest_free>\d+) "
    r"pressure_calls=(?P<pressure_calls>\d+)(?: callback_error=(?P<callback_error>\d+))? "
    r'pool="(?P<pool>(?:[^"\\]|\\.)*)"\]',
    re.MULTILINE,
)
_NUMBERS = ("requested", "allocated", "held", "largest_free", "pressure_calls")


def oom_info(exc: BaseException) -> dict[str, Any] | None:
    """The facts of an out-of-memory error, None when it did not come from mempool.

    Works on any exception that carries mempool's message, also one that was pickled in another process.

    Returns:
        ``reason`` (``"pool_limit"``, ``"device_limit"``, ``"backend_refused"``, ``"metadata_refused"`` or
        ``"size_overflow"``), ``device``, ``pool`` (whose limit refused, else the one that asked), and in bytes
        ``requested`` (as asked), ``allocated`` (live in that pool), ``limit`` (None when none is set), ``held`` (by the
        whole device), ``largest_free`` (contiguous); ``pressure_calls`` (callbacks that ran) and ``callback_error``
        (the exception that a pressure callback raised, its id if the exception is not kept any more or carried a
        tensor, or None).
    """
    matches = list(_FIELDS.finditer(str(exc)))
    if not matches:
        return None
    info: dict[str, Any] = dict(matches[-1].groupdict())
    for key in _NUMBERS:
        info[key] = int(info[key])
    info["limit"] = None if info["limit"] == "none" else int(info["limit"])
    info["pool"] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], info["pool"])
    if info["callback_error"] is not None:
        error_id = int(info["callback_error"])
        info["callback_error"] = _errors.get(error_id, error_id)
    return info


def chain_callback_error(exc: BaseException | None) -> None:
    """Makes the error of a pressure callback the cause of the out-of-memory error that followed it."""
    if not isinstance(exc, OutOfMemoryError) or exc.__cause__ is not None:
        return
    info = oom_info(exc)
    if info is not None and isinstance(info["callback_error"], BaseException):
        exc.__cause__ = info["callback_error"]
