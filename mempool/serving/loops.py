"""Has pools follow their context on the event loop that a server runs, whichever that turns out to be."""

from __future__ import annotations

import asyncio
import weakref

from mempool.following import FollowHandle, follow_context
from mempool.scopes import is_following

# The loops that are followed for anybody here: each once, whoever asks, as every layer costs each step of each task.
_followed: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[FollowHandle, set[int]]] = (
    weakref.WeakKeyDictionary()
)


class LoopFollower:
    """Follows one loop at a time: an app meets another one when it is started anew, as tests do."""

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None

    def begin(self) -> None:
        """Follows the running loop, once; not where somebody else's following reaches the code that runs."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and loop is self._loop():
            return
        self.end()
        self._loop = weakref.ref(loop)
        if loop in _followed:
            _followed[loop][1].add(id(self))
        elif not is_following():
            _followed[loop] = (follow_context(loop), {id(self)})

    def end(self) -> None:
        """Undoes it, with the last of those who asked."""
        loop, self._loop = self._loop() if self._loop is not None else None, None
        if loop is None or loop not in _followed:
            return
        handle, users = _followed[loop]
        users.discard(id(self))
        if not users:
            del _followed[loop]
            handle.remove()
