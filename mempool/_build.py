"""What the compiled part was built for, and the refusal to run it with anything else."""

from __future__ import annotations

import torch

from mempool import _core

__version__: str = _core.version


def release_of(version: str) -> str:
    """``"2.13.0+cpu"`` -> ``"2.13.0"``: builds of one release share their C++ interface."""
    return version.split("+", 1)[0]


def check_torch(running: str | None = None) -> None:
    """Raises ImportError when the torch of this process is not the release that mempool was compiled for.

    torch's C++ classes change between releases; a mismatch would call the wrong function instead of failing.
    """
    found = release_of(running if running is not None else torch.__version__)
    built = release_of(_core.torch_version)
    if found == built:
        return
    raise ImportError(
        f"mempool {__version__} was compiled for torch {built}, but torch {found} is installed. Rebuild it in "
        "mempool's source folder:  pip install --no-build-isolation --no-deps --force-reinstall .  "
        f"(or install the torch it was built for:  pip install torch=={built})"
    )
