"""Writes a stub for each NVIDIA library that torch links and the stand-in does not play.

    python generate_stubs.py TORCH_LIB_FOLDER OUT_FOLDER

Every symbol that torch's libraries import from it is a function that returns 0, which is success in all of these
libraries. What they are is read from torch itself, so that another torch needs no other list. For each library
OUT_FOLDER gets `NAME.c` and `NAME.map`; the names go to stdout, one a line, as `SONAME`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PLAYED = {"libcudart.so.13", "libcuda.so.1"}
# Libraries whose symbols carry no version that names them.
PREFIXES = {
    "nccl": "libnccl.so.2",
    "pnccl": "libnccl.so.2",
    "cusparseLt": "libcusparseLt.so.0",
    "cuFile": "libcufile.so.0",
    "nvshmem": "libnvshmem_host.so.3",
    "curand": "libcurand.so.10",
    "cudnn": "libcudnn.so.9",
    "cublasLt": "libcublasLt.so.13",
    "cufft": "libcufft.so.12",
    "cupti": "libcupti.so.13",
}
# Success alone is not enough for these.
BODIES = {
    # One algorithm is found: with none, torch warns and takes another way.
    "cublasLtMatmulAlgoGetHeuristic": (
        "int cublasLtMatmulAlgoGetHeuristic(void* a, void* b, void* c, void* d, void* e, void* f, void* g, int wanted,"
        " void* results, int* found) { *found = 1; return 0; }\n"
    ),
}
NVIDIA = re.compile(r"lib(cu|nv|nccl)")


def output_of(*command: str) -> list[str]:
    """The lines that a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def needed_by(library: Path) -> set[str]:
    """The libraries that this one is linked with."""
    lines = output_of("readelf", "--dynamic", "--wide", str(library))
    return {found[1] for line in lines if (found := re.search(r"\(NEEDED\).*\[(.*)\]", line))}


def imported_by(library: Path) -> set[tuple[str, str]]:
    """(symbol, version or "") for everything that this library takes from others."""
    names = [line.split()[-1] for line in output_of("nm", "--dynamic", "--undefined-only", str(library))]
    return {(name.partition("@")[0], name.rpartition("@")[2] if "@" in name else "") for name in names}


def stubs(folder: Path) -> dict[str, dict[str, set[str]]]:
    """soname -> version node ("" for none) -> symbols."""
    libraries = sorted(folder.glob("*.so"))
    sonames = {name for each in libraries for name in needed_by(each) if NVIDIA.match(name)} - PLAYED
    found: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in sonames}
    for symbol, version in set().union(*(imported_by(each) for each in libraries)):
        by_prefix = next((name for prefix, name in PREFIXES.items() if symbol.startswith(prefix)), "")
        soname = version if version in sonames else by_prefix
        if soname in found:
            found[soname][version].add(symbol)
    return found


def main() -> None:
    """Reads the command line and writes the sources."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for soname, versions in sorted(stubs(folder).items()):
        symbols = sorted(set().union(*versions.values()))
        functions = "".join(BODIES.get(symbol, f"long {symbol}(void) {{ return 0; }}\n") for symbol in symbols)
        (out / f"{soname}.c").write_text(functions or "typedef int nothing_is_imported;\n")
        nodes = [f"{node} {{ global: {'; '.join(sorted(names))}; }};" for node, names in versions.items() if node]
        (out / f"{soname}.map").write_text("\n".join(nodes) + "\n")
        print(soname)


if __name__ == "__main__":
    main()
