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
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

from mempool import _core
from mempool._tracebacks import FrameRemoval
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
_TRACEBACK = "Traceback (most recent call last)"
# The last error, with its id, if it refers to one that the program had saved, whose frames are left to it. It is kept
# until it is the cause of an out-of-memory error, or the next one comes: such frames may hold much.
_last_with_frames: tuple[int, BaseException] | None = None
# Of out-of-memory errors whose cause that one became: the cause's id().
_causes: weakref.WeakKeyDictionary[BaseException, int] = weakref.WeakKeyDictionary()


class PressureHandle:
    """A registered pressure callback, which :func:`on_pressure` returns."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    @property
    def callback(self) -> Callback:
        """The function that was registered."""
        return self._callback

    def remove(self) -> None:
        """Unregisters the callback. Has no effect the second time."""
        with _lock:
            if self in _callbacks:
                _callbacks.remove(self)
            if not _callbacks:
                _core.set_pressure_handler(None)


def on_pressure(callback: Callback) -> PressureHandle:
    """Registers ``callback(pool_name, needed_bytes)`` to be called when memory is short.

    It runs on the thread that allocates, charged to no pool: once before an allocation is refused (the allocation is
    then tried again), and once each time a soft limit is crossed from below. It may free tensors, allocate, and call
    mempool; an allocation of its own that fails does not call the callbacks again. An error that it raises is logged;
    when the allocation then fails, the message names the error, ``oom_info(exc)["callback_error"]`` is the error, and
    it becomes the cause of the out-of-memory error where that leaves a ``use_pool``, ``in_pool`` or ``bind``.

    Args:
        callback: takes the name of the pool that is short (``"default"`` for the device) and the bytes that are
            missing. What it returns is ignored.

    Returns:
        A handle; its ``remove()`` unregisters the callback.

    Raises:
        ConfigError: `callback` cannot be called.
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
    handled = sys.exc_info()[1]  # what the program was handling: no part of a callback's error
    first_error = ""
    first_id = 0
    for handle in handles:
        try:
            handle.callback(pool, needed_bytes)
        except BaseException as error:  # the allocation goes on even when a callback fails
            if isinstance(error, KeyboardInterrupt):
                raise  # meant for the program: the compiled side has it come again once the allocation is over
            _log.warning("a pressure callback raised %s", _text_of(error), exc_info=not failing)
            if first_id == 0:
                first_error, first_id = _text_of(error), _keep(error, handled, sys._getframe())
    return len(handles), first_error, first_id


def _text_of(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:  # the error's class is at fault: its repr raises
        return type(error).__name__


def _keep(error: BaseException, handled: BaseException | None, runner: types.FrameType) -> int:
    """Keeps the error, without the request's frames, and returns an id for it that is unique among processes.

    A frame refers to the frames that called it, and so to the tensors of the request that was refused. `handled`: the
    exception that was being handled when the callbacks were called, which Python makes the context of what they raise.
    `runner`: the frame that called the callbacks.
    """
    global _last_with_frames
    text = "".join(traceback.format_exception(error)).rstrip()
    removal = FrameRemoval(handled, runner)
    removal.apply(error)
    is_told = any(_TRACEBACK in str(note) for note in getattr(error, "__notes__", ()))  # it is raised again and again
    if hasattr(error, "add_note") and error.__traceback__ is None and not is_told:
        error.add_note(text)
    with _lock:
        error_id = (os.getpid() << 32) | (next(_error_ids) & 0xFFFFFFFF)
        _last_with_frames = None
        if removal.has_frames and not removal.has_tensor:
            _last_with_frames = (error_id, error)
        elif not removal.has_tensor:
            _errors[error_id] = error
        while len(_errors) > _MOST_ERRORS:
            _errors.popitem(last=False)
    return error_id


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _core.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_core.retire_hooks)


# The facts are the last line of a message: what stands before it may quote the message of another error.
_FIELDS = (  # compiled at its first use, which takes milliseconds
    r"(?m)"
    r"^\[mempool\.oom reason=(?P<reason>\w+) device=(?P<device>\S+) requested=(?P<requested>\d+) "
    r"allocated=(?P<allocated>\d+) limit=(?P<limit>\d+|none) held=(?P<held>\d+) largest_free=(?P<largest_free>\d+) "
    r"pressure_calls=(?P<pressure_calls>\d+)(?: held_by_all=(?P<held_by_all>\d+))?(?: outside=(?P<outside>\d+))?"
    r"(?: callback_error=(?P<callback_error>\d+))?"
    r'(?: capture="(?P<capture>(?:[^"\\]|\\.)*)")? '
    r'pool="(?P<pool>(?:[^"\\]|\\.)*)"\]'
)
_NUMBERS = ("requested", "allocated", "held", "largest_free", "pressure_calls")


def oom_info(exc: BaseException) -> dict[str, Any] | None:
    """The facts of an out-of-memory error; None when it did not come from mempool.

    Reads mempool's message, and so works on an exception that was pickled in another process, too.

    Returns:
        ``reason`` (``"pool_limit"``, ``"device_limit"``, ``"shared_limit"``, ``"ledger_full"``, ``"backend_refused"``,
        ``"metadata_refused"`` or ``"size_overflow"``), ``device``, ``pool`` (whose limit refused, else the one that
        asked), and in bytes ``requested`` (as asked), ``allocated`` (live in that pool), ``limit`` (None when none is
        set), ``held`` (by the whole device), ``outside`` (what torch's other allocator holds on it, from before
        ``enable("cuda")``, say: it counts in the limit), ``held_by_all`` (by all processes that share the limit that
        refused; None for other reasons), ``largest_free`` (contiguous); ``pressure_calls`` (callbacks that ran) and
        ``callback_error`` (the exception that a pressure callback raised, its id if the exception is not kept any more
        or carried a tensor, or None); ``capture`` (the file that :func:`mempool.observe.capture_on_oom` writes a
        snapshot to, or None).
    """
    matches = list(re.finditer(_FIELDS, str(exc)))
    if not matches:
        return None
    info: dict[str, Any] = dict(matches[-1].groupdict())
    for key in _NUMBERS:
        info[key] = int(info[key])
    info["outside"] = int(info["outside"] or 0)
    if info["held_by_all"] is not None:
        info["held_by_all"] = int(info["held_by_all"])
    info["limit"] = None if info["limit"] == "none" else int(info["limit"])
    for key in ("pool", "capture"):
        if info[key] is not None:
            info[key] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], info[key])
    if info["callback_error"] is not None:
        error_id = int(info["callback_error"])
        info["callback_error"] = _kept_error(exc, error_id)
    return info


def _kept_error(exc: BaseException, error_id: int) -> BaseException | int:
    last = _last_with_frames
    if last is not None and last[0] == error_id:
        return last[1]
    if exc.__cause__ is not None and _causes.get(exc) == id(exc.__cause__):
        return exc.__cause__
    return _errors.get(error_id, error_id)


def chain_callback_error(exc: BaseException | None) -> None:
    """Makes the error of a pressure callback the cause of the out-of-memory error that followed it."""
    global _last_with_frames
    if not isinstance(exc, OutOfMemoryError) or exc.__cause__ is not None:
        return
    info = oom_info(exc)
    error = None if info is None else info["callback_error"]
    if not isinstance(error, BaseException):
        return
    exc.__cause__ = error
    with _lock:
        if _last_with_frames is not None and _last_with_frames[1] is error:
            _causes[exc] = id(error)
            _last_with_frames = None
