"""Has pools follow their context on the event loop that a server runs, whichever that turns out to be."""

from __future__ import annotations

import asyncio

from mempool.following import FollowHandle, follow_context
from mempool.scopes import is_following


class LoopFollower:
    """Follows one loop at a time: an app meets another one when it is started anew, as tests do."""

    __slots__ = ("_handle", "_loop")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: FollowHandle | None = None

    def begin(self) -> None:
        """Follows the running loop, once; not where somebody else's following reaches the code that runs."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        self.end()
        self._loop = loop
        if not is_following():
            self._handle = follow_context(loop)

    def end(self) -> None:
        """Undoes it."""
        handle, self._handle, self._loop = self._handle, None, None
        if handle is not None:
            handle.remove()
