"""What the compiled part was built for, and the refusal to run with another torch."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from mempool import _core

__version__: str = _core.version


def release_of(version: str) -> str:
    """``"2.13.0+cpu"`` -> ``"2.13.0"``: builds of one release share their C++ interface."""
    return version.split("+", 1)[0]


_REBUILD = "run `pip install --no-build-isolation --no-deps --force-reinstall .` in mempool's source folder"


def check_torch(running: str | None = None) -> None:
    """Raises ImportError when the torch of this process is not the release that mempool was compiled for.

    torch's C++ classes change between releases; a mismatch would call the wrong function instead of failing.
    """
    found = release_of(running if running is not None else torch.__version__)
    built = release_of(_core.torch_version)
    if found == built:
        return
    raise ImportError(
        f"mempool {__version__} was compiled for torch {built}, but torch {found} is installed. "
        f"To rebuild it for that one, {_REBUILD}."
    )


def cuda_problem(error: ImportError) -> str:
    """Why there is no CUDA half, by the error of its import: a part of a sentence, with what to do."""
    if _core.without_cuda:
        return f"mempool was built without CUDA: {_core.without_cuda}"
    return f"mempool's CUDA half {load_problem(error)}"


def load_problem(error: ImportError | OSError) -> str:
    """Why a compiled part cannot be loaded, and what to do: the end of a sentence that names the part."""
    if isinstance(error, ModuleNotFoundError):
        return f"is missing in {Path(_core.__file__).parent}: {_REBUILD}"
    words = str(error.__cause__ or error)  # torch keeps the loader's words in the cause
    missing = re.search(r"(lib[\w+-]+\.so(\.\d+)*): cannot open shared object", words)
    if missing and missing[1].startswith(("libtorch", "libc10")):
        return f"needs {missing[1]}, which torch {torch.__version__} has not: {_REBUILD}"
    if missing:
        return (
            f"needs {missing[1]}, which cannot be found: install the packages that torch depends on with "
            f"`pip install torch=={release_of(torch.__version__)}`"
        )
    symbol = re.search(r"undefined symbol: (\S+)", words)
    if symbol:
        return f"was built for another torch than {torch.__version__} (undefined symbol {symbol[1]}): {_REBUILD}"
    return f"cannot be loaded ({words})"
