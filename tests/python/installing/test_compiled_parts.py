"""What users are told when a compiled part of mempool is not there, or does not fit torch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mempool import _build, _torch_cpu
from mempool.packed import ops

Python = Callable[..., "subprocess.CompletedProcess[str]"]
RELEASE = torch.__version__.split("+")[0]
REBUILD = "run `pip install --no-build-isolation --no-deps --force-reinstall .` in mempool's source folder"

SCRIPT = """
import sys, torch
without, error = sys.argv[1:]
class Absent:
    def find_spec(self, name, *_):
        if name == "mempool._torch_cuda":
            raise ImportError(error) if error else ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
torch.version.cuda = "13.0"
import mempool
mempool._torch_cpu.without_cuda = without
print(mempool.enable()["cuda"])
for refused in (lambda: mempool.enable("cuda"), mempool.cuda_library_path):
    try:
        refused()
    except mempool.DeviceError as problem:
        print(problem)
print(int(torch.ones(10).sum()), mempool.is_enabled("cpu"))
"""
HALF = "mempool's CUDA half"


@pytest.mark.parametrize(
    ("without", "error", "sentence"),
    [
        ("crt/host_config.h is missing", "", "mempool was built without CUDA: crt/host_config.h is missing"),
        ("", "", f"{HALF} is missing in {_build.shim_folder()}: {REBUILD}"),
        (
            "",
            "libcudart.so.13: cannot open shared object file: No such file or directory",
            f"{HALF} needs libcudart.so.13, which cannot be found: install the packages that torch depends on with "
            f"`pip install torch=={RELEASE}`",
        ),
        (
            "",
            "/x/_torch_cuda.so: undefined symbol: _ZN3c104cuda",
            f"{HALF} was built for another torch than {torch.__version__} (undefined symbol _ZN3c104cuda): {REBUILD}",
        ),
        ("", "/x/_torch_cuda.so: file too short", f"{HALF} cannot be loaded (/x/_torch_cuda.so: file too short)"),
    ],
)
def test_why_there_is_no_cuda(python: Python, without: str, error: str, sentence: str) -> None:
    done = python(SCRIPT, without, error)
    assert done.stdout.splitlines() == [sentence, f"cuda: {sentence}.", f"cuda: {sentence}.", "10 True"], done.stderr


def test_a_torch_without_cuda_comes_first(python: Python) -> None:
    done = python(SCRIPT.replace('"13.0"', "None"), "never mind", "")
    assert done.stdout.splitlines()[0] == f"torch {torch.__version__} has no CUDA", done.stderr


@pytest.fixture
def library(tmp_path: Path) -> Callable[[str, str], Path]:
    """Compiles a library that wants a symbol of another one, which is then removed or made without it."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no compiler")

    def build(needs: str, then: str) -> Path:
        def compile(name: str, text: str, *more: str) -> None:
            (tmp_path / "x.c").write_text(text)
            command = [compiler, "-xc", "-shared", "-fPIC", "-o", name, "x.c", "-xnone", *more]
            subprocess.run(command, cwd=tmp_path, check=True)

        compile(needs, "int wanted(void) { return 1; }", f"-Wl,-soname,{needs}")
        origin = "-Wl,-rpath,$ORIGIN"
        compile("_ops_cuda.so", "int wanted(void); int f(void) { return wanted(); }", f"./{needs}", origin)
        if then == "removed":
            (tmp_path / needs).unlink()
        else:
            compile(needs, "int other(void) { return 1; }", f"-Wl,-soname,{needs}")
        return tmp_path / "_ops_cuda.so"

    return build


@pytest.mark.parametrize(
    ("needs", "then", "sentence"),
    [
        (
            "libabsent.so.13",
            "removed",
            "needs libabsent.so.13, which cannot be found: install the packages that torch depends on with "
            f"`pip install torch=={RELEASE}`",
        ),
        ("libtorch_gone.so", "removed", f"needs libtorch_gone.so, which torch {torch.__version__} has not: {REBUILD}"),
        (
            "libneeded.so",
            "changed",
            f"was built for another torch than {torch.__version__} (undefined symbol wanted): {REBUILD}",
        ),
    ],
)
def test_what_the_loader_says(
    library: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, needs: str, then: str, sentence: str
) -> None:
    path = library(needs, then)
    with pytest.raises(OSError, match=r"\.so") as caught:
        ctypes.CDLL(str(path))
    assert _build.load_problem(caught.value) == sentence

    # torch loads the library of kernels for a GPU: where that fails, mempool is imported without it.
    monkeypatch.setattr(_torch_cpu, "without_cuda_kernels", "")
    monkeypatch.setattr(ops, "_FOLDER", path.parent)
    assert ops._load_cuda_kernels() == f"the library of kernels for a GPU {sentence}"


def test_why_this_build_has_no_kernels_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_cpu, "without_cuda_kernels", "there is no nvcc: pip install it")
    assert ops._load_cuda_kernels() == "this build has no kernels for a GPU: there is no nvcc: pip install it"
