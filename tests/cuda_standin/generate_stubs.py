"""Writes a stub for each NVIDIA library that torch links and the stand-in does not play.

    python generate_stubs.py TORCH_LIB_FOLDER OUT_FOLDER

Every symbol that torch's libraries import from it is a function that returns 0, which is success in all of these
libraries. What they are is read from torch itself, so that another torch needs no other list. For each library
OUT_FOLDER gets `NAME.c` and `NAME.map`; the names go to stdout, one a line, as `SONAME`.

`unplayed.c` is for the libraries that the stand-in plays: weak functions for all that torch imports from them. Those
that the stand-in implements take their place, and the others return an error. A torch for another major version of CUDA
than the stand-in's gets no such file: everything is a stub there, and no device is found.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PLAYED = {"libcudart.so.13", "libcuda.so.1"}
# The libraries, less the version, of symbols that carry no version which names them. The first that fits counts.
PREFIXES = {
    "nccl": "libnccl",
    "pnccl": "libnccl",
    "cusparseLt": "libcusparseLt",
    "cuFile": "libcufile",
    "nvshmem": "libnvshmem_host",
    "curand": "libcurand",
    "cudnn": "libcudnn",
    "cublasLt": "libcublasLt",
    "cufft": "libcufft",
    "cupti": "libcupti",
    "cuda": "libcudart",
    "__cuda": "libcudart",
    "cu": "libcuda",
}
# Success alone is not enough for these.
BODIES = {
    # One algorithm is found: with none, torch warns and takes another way.
    "cublasLtMatmulAlgoGetHeuristic": (
        "int cublasLtMatmulAlgoGetHeuristic(void* a, void* b, void* c, void* d, void* e, void* f, void* g, int wanted,"
        " void* results, int* found) { *found = 1; return 0; }\n"
    ),
    # Where CUDA is not played, there is no device: cudaErrorNoDevice.
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int* count) { *count = 0; return 100; }\n",
    "cuInit": "int cuInit(unsigned flags) { return 100; }\n",
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


def libraries(folder: Path) -> dict[str, dict[str, set[str]]]:
    """soname -> version node ("" for none) -> symbols."""
    importing = sorted(folder.glob("*.so"))
    sonames = {name for each in importing for name in needed_by(each) if NVIDIA.match(name)}
    stems = {name.partition(".so")[0]: name for name in sonames}
    stems.setdefault("libcuda", "libcuda.so.1")  # opened at run time, not linked
    found: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in sonames | {"libcuda.so.1"}}
    for symbol, version in set().union(*(imported_by(each) for each in importing)):
        by_prefix = next((stems.get(stem, "") for prefix, stem in PREFIXES.items() if symbol.startswith(prefix)), "")
        soname = version if version in sonames else by_prefix
        if soname in found:
            found[soname][version].add(symbol)
    return found


def write_unplayed(out: Path, symbols: set[str]) -> None:
    """The weak functions for what torch imports from the libraries that the stand-in plays."""
    functions = [
        f'__attribute__((weak)) int {symbol}(void) {{ return unplayed_call("{symbol}"); }}\n'
        for symbol in sorted(symbols)
    ]
    out.write_text("int unplayed_call(const char* name);\n" + "".join(functions))


def main() -> None:
    """Reads the command line and writes the sources."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    found = libraries(folder)
    (out / "unplayed.c").unlink(missing_ok=True)
    if set(found) >= PLAYED:
        played = [found.pop(soname) for soname in sorted(PLAYED)]
        write_unplayed(out / "unplayed.c", set().union(*(symbols for each in played for symbols in each.values())))
    for soname, versions in sorted(found.items()):
        symbols = sorted(set().union(*versions.values()))
        functions = "".join(BODIES.get(symbol, f"long {symbol}(void) {{ return 0; }}\n") for symbol in symbols)
        (out / f"{soname}.c").write_text(functions or "typedef int nothing_is_imported;\n")
        nodes = [f"{node} {{ global: {'; '.join(sorted(names))}; }};" for node, names in versions.items() if node]
        (out / f"{soname}.map").write_text("\n".join(nodes) + "\n")
        print(soname)


if __name__ == "__main__":
    main()
