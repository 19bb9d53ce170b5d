"""What nvcc makes of the kernels: no spills, the registers and shared memory that each file claims, tensor cores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CUDA = ROOT / "csrc" / "kernels" / "cuda"
KERNELS = sorted(path.stem for path in CUDA.glob("*.cu"))
TOOLKIT = Path(os.environ.get("CUDA_TOOLKIT", ROOT / "build/cuda_toolkit/nvidia/cu13"))
ARCHITECTURES = ("sm_80", "sm_90")

REGISTERS = 65536  # of a multiprocessor, on both
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}
SHARED_OF_BLOCK = 1024  # that the system keeps of each block
THREADS = 256

# Blocks on a multiprocessor at once, as the files say, and the instructions that have to be there.
CLAIMS = {
    "bitmap_decode": (2, ["IDP.4A.S8.S8", "LDGSTS.E.BYPASS.128"]),
    "block4_decode": (2, ["IDP.4A.S8.S8"]),
    "dense_decode": (2, ["IDP.4A.S8.S8", "LDG.E.NA.128"]),
    "dense_gemm": (2, ["IMMA.16832.S8.S8", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4"]),
    "expand": (4, ["LDGSTS.E.BYPASS.128", "STG.E.128"]),
    "quantize": (8, ["LDG.E.128"]),
    "sparse24_decode": (3, ["IMMA.SP.16864.S8.S8", "LDGSTS.E.BYPASS.128"]),
    "sparse24_gemm": (2, ["IMMA.SP.16864.S8.S8", "LDGSTS.E.BYPASS.128", "LDS.128"]),
}


@dataclass(frozen=True)
class Compiled:
    """The machine code of one file for one architecture."""

    resources: str  # what cuobjdump -res-usage says
    code: str  # and -sass


def _shared_bytes(kernel: str) -> int:
    """What a launch asks for at most, as the compiler has checked it."""
    limits = re.findall(r"static_assert\(kSharedBytes <= (\d+) \* 1024\)", (CUDA / f"{kernel}.cu").read_text())
    assert len(limits) == 1, kernel
    return int(limits[0]) * 1024


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{TOOLKIT / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.fail(f"there is no {name}: run `make build/cuda_toolkit/stamp`, or name a toolkit with CUDA_TOOLKIT")
    return found


def _run(*command: str | Path) -> str:
    environment = {**os.environ, "PATH": f"{TOOLKIT / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([str(p) for p in command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Compiled]:
    folder = tmp_path_factory.mktemp("cubins")

    def compile_one(which: tuple[str, str]) -> Compiled:
        kernel, architecture = which
        cubin = folder / f"{kernel}.{architecture}.cubin"
        flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch={architecture}", f"-I{ROOT / 'csrc'}"]
        _run(_tool("nvcc"), *flags, "-cubin", CUDA / f"{kernel}.cu", "-o", cubin)
        return Compiled(_run(_tool("cuobjdump"), "-res-usage", cubin), _run(_tool("cuobjdump"), "-sass", cubin))

    which = [(kernel, architecture) for kernel in KERNELS for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(which, pool.map(compile_one, which), strict=True))


def test_every_kernel_has_its_claims() -> None:
    assert sorted(CLAIMS) == KERNELS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_is_spilled_and_as_many_blocks_fit_as_are_claimed(
    kernel: str, architecture: str, compiled: dict[tuple[str, str], Compiled]
) -> None:
    usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", compiled[kernel, architecture].resources)
    assert usage
    blocks, _ = CLAIMS[kernel]
    for registers, stack, _, local in (map(int, numbers) for numbers in usage):
        assert stack == 0
        assert local == 0
        assert blocks * THREADS * ((registers + 7) // 8 * 8) <= REGISTERS
    assert blocks * (_shared_bytes(kernel) + SHARED_OF_BLOCK) <= SHARED_BYTES[architecture]
    code = compiled[kernel, architecture].code
    assert not re.search(r"\b(STL|LDL)\b", code), "it keeps something in local memory"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_instructions_are_there(kernel: str, architecture: str, compiled: dict[tuple[str, str], Compiled]) -> None:
    for instruction in CLAIMS[kernel][1]:
        assert instruction in compiled[kernel, architecture].code, instruction


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_that_share_sums_have_fences(architecture: str, compiled: dict[tuple[str, str], Compiled]) -> None:
    """Before a block says that its sums are there, and before the last one reads those of others (split.h)."""
    for kernel in set(KERNELS) - {"quantize", "expand"}:
        code = compiled[kernel, architecture].code
        assert code.count("MEMBAR.SC.GPU") == 2 * code.count("Function :"), kernel


def test_kernels_hold_no_assembly() -> None:
    for source in [*CUDA.glob("*.cu"), *CUDA.glob("*.h")]:
        assert source.name == "ptx.h" or not re.search(r"\basm\b", source.read_text()), source.name


def test_an_object_has_code_for_all_architectures(tmp_path: Path) -> None:
    """Made as the package's build makes it."""
    made = tmp_path / "dense_gemm.o"
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC", f"-I{ROOT / 'csrc'}"]
    targets = ["compute_80,code=sm_80", "compute_90,code=sm_90", "compute_90,code=compute_90"]
    _run(_tool("nvcc"), *flags, *(f"-gencode=arch={t}" for t in targets), "-c", CUDA / "dense_gemm.cu", "-o", made)
    parts = _run(_tool("cuobjdump"), "-lelf", "-lptx", made)
    assert set(re.findall(r"\.(sm_\d+\.\w+)", parts)) == {"sm_80.cubin", "sm_90.cubin", "sm_90.ptx"}
