"""What the compiled parts were built for, and the refusal to run with another torch.

``_core`` has nothing of torch in it. What links torch (``_torch_cpu``, ``_torch_cuda`` and the libraries of operators)
is there once for each minor release, in ``_shims/torch-X.Y`` beside ``_core``: torch's C++ classes change between
these, and a mismatch would call the wrong function instead of failing.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from mempool import _core

__version__: str = _core.version

_SHIMS = Path(_core.__file__).parent / "_shims"  # an editable installation keeps it apart from these files
_REBUILD = "run `pip install --no-build-isolation --no-deps --force-reinstall .` in mempool's source folder"


def release_of(version: str) -> str:
    """``"2.13.0+cpu"`` -> ``"2.13.0"``."""
    return version.split("+", 1)[0]


def minor_of(version: str) -> str:
    """``"2.13.0+cpu"`` -> ``"2.13"``: builds and patches of a minor release share their C++ interface."""
    return ".".join(re.split(r"[.+a-z]", version)[:2])


def supported_torches() -> list[str]:
    """The minor releases of torch that there are compiled parts for, the oldest first."""
    found = [folder.name.removeprefix("torch-") for folder in _SHIMS.glob("torch-*")]
    return sorted(found, key=_order)


def shim_folder(running: str | None = None) -> Path:
    """The folder of the compiled parts for the torch of this process.

    Raises ImportError when mempool was built for other releases.
    """
    found = running if running is not None else torch.__version__
    folder = _SHIMS / f"torch-{minor_of(found)}"
    if folder.is_dir():
        return folder
    built = " and ".join(", ".join(supported_torches()).rsplit(", ", 1)) or "no release"
    raise ImportError(
        f"mempool {__version__} was compiled for torch {built}, but torch {release_of(found)} is installed. "
        f"To build it for that one, {_REBUILD}."
    )


def notes() -> list[str]:
    """What whoever has just built mempool should know of the build: whole sentences."""
    from mempool import _torch_cpu

    found, newest = minor_of(torch.__version__), _torch_cpu.newest_tested_torch
    out = []
    if _order(found) > _order(newest):
        out.append(f"torch {found} is newer than {newest}, the newest release that mempool was tested with.")
    if _torch_cpu.without_cuda and torch.version.cuda:
        out.append(f"mempool was built for the CPU alone: {_torch_cpu.without_cuda}.")
    return out


def _order(minor: str) -> list[int]:
    return [int(part) for part in minor.split(".")]


def cuda_problem(error: ImportError) -> str:
    """Why there is no CUDA half, by the error of its import: a part of a sentence, with what to do."""
    from mempool import _torch_cpu

    if _torch_cpu.without_cuda:
        return f"mempool was built without CUDA: {_torch_cpu.without_cuda}"
    return f"mempool's CUDA half {load_problem(error)}"


def load_problem(error: ImportError | OSError) -> str:
    """Why a compiled part cannot be loaded, and what to do: the end of a sentence that names the part."""
    if isinstance(error, ModuleNotFoundError):
        return f"is missing in {shim_folder()}: {_REBUILD}"
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
