"""The one error of the demo, in a module of its own so that the others can import it without a cycle."""

from __future__ import annotations


class DemoError(RuntimeError):
    """The demo cannot run here; the message is one sentence that says what to do about it."""
