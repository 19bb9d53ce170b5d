"""The frames of an exception: those that came by a callback, and those that were there before."""

from __future__ import annotations

import inspect
import opcode
import types

import torch


class FrameRemoval:
    """Takes from an error, and from those that it came of or holds, the frames that ran because of a callback.

    Those of an error that the program had saved before, and that a callback raises again or raises another one from,
    are the program's and stay.
    """

    def __init__(self, handled: BaseException | None, runner: types.FrameType) -> None:
        self.has_tensor = False  # which must not be kept with the error
        self.has_frames = False  # of the program
        self._handled = handled
        self._runner = runner
        self._frames: set[types.FrameType] = set()  # of callbacks, that have been found
        self._seen: set[int] = set()

    def apply(self, error: BaseException | None) -> None:
        if error is None or id(error) in self._seen:
            return
        self._seen.add(id(error))
        raised = error.__traceback__
        error.__traceback__ = self._of_before(raised)
        self.has_frames |= error.__traceback__ is not None
        if error.__traceback__ is None or error.__traceback__ is not raised:
            self._drop_links(error)
        carried = (*error.args, *vars(error).values(), getattr(error, "value", None), getattr(error, "obj", None))
        self.has_tensor |= any(isinstance(value, torch.Tensor) for value in carried)
        for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
            self.apply(other)

    def _drop_links(self, error: BaseException) -> None:
        if isinstance(error, (AttributeError, NameError)) and error.__traceback__ is None:
            error.obj = None  # type: ignore[union-attr]
        if error.__context__ is self._handled:
            error.__context__ = None
        if error.__cause__ is self._handled:
            error.__cause__ = None

    def _of_before(self, raised: types.TracebackType | None) -> types.TracebackType | None:
        """The part of a traceback that was there before the callbacks ran: its end, since raising adds in front."""
        last = None  # place that is known to be in a callback
        place = raised
        while place is not None:
            if self._is_of_callback(place.tb_frame):
                last = place
            place = place.tb_next
        before = raised if last is None else last.tb_next
        # A generator's frame does not say what has resumed it, but what has resumed it did not raise.
        if last is not None and before is not None and not _raises(last) and _is_resumed(before.tb_frame):
            before = None
        while raised is not before and raised is not None:
            self._frames.add(raised.tb_frame)
            raised = raised.tb_next
        return before

    def _is_of_callback(self, frame: types.FrameType | None) -> bool:
        while frame is not None:
            if frame is self._runner or frame in self._frames:
                return True
            frame = frame.f_back
        return False


def _raises(place: types.TracebackType) -> bool:
    """Whether the frame itself has raised, and nothing that it called."""
    code = place.tb_frame.f_code.co_code
    return opcode.opname[code[place.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")


def _is_resumed(frame: types.FrameType) -> bool:
    kinds = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return frame.f_code.co_flags & kinds != 0
