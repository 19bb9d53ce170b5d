"""Tells the build about a torch, in one line of JSON, with a `problem` if there is one.

    python torch_facts.py           the torch of this interpreter, which is imported
    python torch_facts.py FOLDER    the torch package in a folder, which is only read: it may be for another machine

Only Python's own library may be imported at the top: torch may be missing, or may fail to import.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
import sysconfig
from pathlib import Path


def facts_of_folder(folder: Path) -> dict[str, object]:
    """Those of a torch that is unpacked somewhere."""
    try:
        written = dict(re.findall(r"^(\w+)[^=\n]*= '([^'\n]*)'$", (folder / "version.py").read_text(), re.MULTILINE))
        new_abi = b"__cxx11" in (folder / "lib" / "libc10.so").read_bytes()  # its functions take std::string
        version = written["__version__"]
    except (OSError, KeyError) as error:
        return {"problem": f"{folder} is no package of torch ({type(error).__name__}: {error})"}
    return {
        "problem": "",
        "version": version,
        "folder": str(folder),
        "new_abi": int(new_abi),
        "cuda": written.get("cuda", ""),
        "nvidia": str(folder.parent / "nvidia"),
    }


def facts() -> dict[str, object]:
    """Those of the torch of this interpreter."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {
            "problem": f"{sys.executable} is a free-threaded build of Python, which mempool does not support yet: "
            "use one with the GIL."
        }
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:  # no origin: a folder named torch that is no package
        return {
            "problem": "mempool is built against the torch that it will run with, and "
            f"{sys.executable} finds none. Run:  pip install torch && pip install --no-build-isolation ."
        }
    folder = Path(found.origin).parent
    try:
        import torch

        nvidia = importlib.util.find_spec("nvidia")
        return {
            "problem": "",
            "version": str(torch.__version__),
            "folder": str(folder),
            "new_abi": int(torch._C._GLIBCXX_USE_CXX11_ABI),
            "cuda": torch.version.cuda or "",
            "nvidia": ";".join((nvidia.submodule_search_locations or []) if nvidia else []),  # a list of CMake
        }
    except Exception as error:  # a library that is missing gives an ImportError, an OSError or a ValueError
        return {"problem": import_problem(installed_version(folder), folder, error)}


def installed_version(folder: Path) -> str:
    """torch's version without importing it; empty when nothing says it."""
    try:
        written = re.search(r"^__version__ = '([^']+)'", (folder / "version.py").read_text(), re.MULTILINE)
        return written[1] if written else importlib.metadata.version("torch")
    except (OSError, importlib.metadata.PackageNotFoundError):
        return ""


def import_problem(version: str, folder: Path, error: Exception) -> str:
    """One sentence on a torch that is there and does not import, and what to do about it."""
    named = f"torch {version}".rstrip()
    words = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
    missing = re.search(r"(lib[\w+-]+\.so(\.\d+)*)\S* (cannot open shared object|not found in the system path)", words)
    if missing:
        words = f"{missing[1]} is missing"
    if version and (missing or isinstance(error, ModuleNotFoundError)):
        release = version.partition("+")[0]
        advice = f"Install the packages that this torch depends on:  pip install torch=={release}"
    else:
        advice = f'It has to be mended first:  {sys.executable} -c "import torch"'
    return f"{named} is installed in {folder}, but cannot be imported: {words}. {advice}"


if __name__ == "__main__":
    print("\n" + json.dumps(facts_of_folder(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else facts()))
