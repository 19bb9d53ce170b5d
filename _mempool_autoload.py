"""The entry point of group "torch.backends", which torch calls at the end of ``import torch``, in every process.

MEMPOOL_ENABLE says what to enable; without it nothing is imported. The module lies outside of the package, whose import
takes longer than all of this.
"""

import os
import sys

# mempool is importing torch: it enables when it is complete.
_is_deferred = False


def load() -> None:
    """Enables mempool where MEMPOOL_ENABLE asks for it. Raises only where a limit was asked for and cannot be kept."""
    global _is_deferred
    asked = os.environ.get("MEMPOOL_ENABLE", "")
    if not asked or os.environ.get("MEMPOOL_DISABLE") == "1":
        return
    package = sys.modules.get("mempool")
    if package is not None and getattr(package.__spec__, "_initializing", False):
        _is_deferred = True
        return
    _enable(asked)


def finish() -> None:
    """The package calls it at the end of its own import."""
    global _is_deferred
    if _is_deferred:
        _is_deferred = False
        _enable(os.environ.get("MEMPOOL_ENABLE", ""))


def _enable(asked: str) -> None:
    try:
        from mempool import _autoload
    except Exception as error:  # mempool was built for another torch, say
        if "=" in asked:
            raise
        import warnings

        warnings.warn(f"MEMPOOL_ENABLE={asked}: {error}", stacklevel=2)
        return
    _autoload.enable_as_asked(asked)
