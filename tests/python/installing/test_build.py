"""Which halves the build makes of the CUDA headers and the compilers that it meets, and the sentence that it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_machines import AGAIN, CRT, ROOT, Machine, cmake

Decisions = dict[str, tuple[str, list[str], str]]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a machine's")


@pytest.fixture(scope="module")
def decisions(machines: Path) -> Decisions:
    """For each machine the problem with its CUDA half, the folders of headers chosen for it, the problem with nvcc."""

    def machine(name: str, **facts: object) -> Machine:
        (machines / name).mkdir()
        made.append(Machine(machines / name, **facts))  # type: ignore[arg-type]
        return made[-1]

    made: list[Machine] = []
    home = "site/nvidia/cu13/include"
    machine("no_cuda", torch="2.13.0+cpu", cuda="")
    machine("off", choice="off")
    machine("no_library", lost="libtorch_cuda.so").runtime(home)
    machine("old_torch", torch="2.10.0+cu128").runtime(home)
    machine("no_headers")
    machine("half").runtime(home)
    on = machine("half_on", choice="on")
    on.runtime(home)
    whole = machine("whole")
    whole.runtime(home)
    whole.crt(home)
    toolkit = machine("toolkit", system=["", str(machines / "toolkit/cuda home")])
    toolkit.runtime(home)
    toolkit.runtime("cuda home/include")
    toolkit.crt("cuda home/include")
    old = machine("old_toolkit", system=[str(machines / "old_toolkit/cuda")])
    old.runtime("cuda/include", 12080)
    old.crt("cuda/include")
    twelve = machine("twelve", torch="2.14.1+cu126", cuda="12.6")
    twelve.runtime("site/nvidia/cuda_runtime/include", 12060)
    two = machine("two_folders", torch="2.14.1+cu126", cuda="12.6")
    two.runtime("site/nvidia/cuda_runtime/include", 12060)
    two.crt("site/nvidia/cuda_nvcc/include")
    named = machine("named", headers=str(machines / "named/mine"))
    named.runtime("mine")
    named.runtime(home)  # whole, but another is wanted
    named.crt(home)
    machine("named_nothing", headers="/no/such/folder")
    strange = machine("strange_torch", torch="2.99.0+cu130", interface="int allocator(int);")
    strange.runtime(home)
    strange.crt(home)
    broken = machine("broken")
    broken.runtime(home)
    (broken.folder / home / "cuda_runtime.h").write_text("#error not today\n")

    machine("nvcc_none", nvcc="")
    machine("nvcc_good", nvcc="Cuda compilation tools, release 13.0, V13.0.88")
    machine("nvcc_old", nvcc="release 12.4, V12.4.1", cuda="12.4")
    machine("nvcc_other", nvcc="release 12.8, V12.8.1")
    machine("nvcc_mute", nvcc="no version")
    machine("nvcc_half", nvcc="release 13.0, V13.0.88;echo 'sh: 1: cicc: not found' >&2; exit 127")

    for each in made:
        each.write()
    done = cmake("-S", str(ROOT / "tests/build"), "-B", str(machines / "build"), f"-DCASES={machines}")
    assert done.returncode == 0, done.stderr
    found: Decisions = {}
    for each in made:
        said = each.folder.with_name(each.folder.name + ".cmake.out").read_text()
        problem, folders, nvcc = said.split("|")
        found[each.folder.name] = problem, folders.split(";") if folders else [], nvcc
    return found


def test_the_cuda_half_is_built_where_all_of_it_is_there(decisions: Decisions, machines: Path) -> None:
    assert decisions["whole"] == ("", [f"{machines}/whole/site/nvidia/cu13/include"], "")
    # A half folder of packages does not hide the whole one of a toolkit.
    assert decisions["toolkit"] == ("", [f"{machines}/toolkit/cuda home/include"], "")
    nvidia = f"{machines}/two_folders/site/nvidia"
    assert decisions["two_folders"] == ("", [f"{nvidia}/cuda_runtime/include", f"{nvidia}/cuda_nvcc/include"], "")


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        ("no_cuda", "torch 2.13.0+cpu, which it was built with, has no CUDA: build mempool again with one that has"),
        ("off", "MEMPOOL_CUDA was off: build mempool again with --config-settings=cmake.define.MEMPOOL_CUDA=auto"),
        (
            "no_library",
            "libtorch_cuda.so of torch 2.14.1+cu130 is missing in {folder}/site/torch/lib: "
            f"pip install --force-reinstall torch==2.14.1{AGAIN}",
        ),
        (
            "old_torch",
            "its CUDA half needs torch 2.11 or later, and was built with 2.10.0+cu128: "
            f"pip install --upgrade torch{AGAIN}",
        ),
        (
            "no_headers",
            "cuda_runtime_api.h of CUDA 13.0 was found nowhere: "
            "pip install 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*', or name its folder with "
            f"--config-settings=cmake.define.MEMPOOL_CUDA_HEADERS=FOLDER{AGAIN}",
        ),
        ("half", CRT + " {folder}/site/nvidia/cu13/include: pip install 'nvidia-cuda-crt==13.0.*'" + AGAIN),
        ("half_on", CRT + " {folder}/site/nvidia/cu13/include: pip install 'nvidia-cuda-crt==13.0.*'" + AGAIN),
        (
            "old_toolkit",
            "{folder}/cuda/include has the headers of CUDA 12.8, and torch 2.14.1+cu130 is built for 13.0: "
            f"pip install 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*'{AGAIN}",
        ),
        (
            "twelve",
            CRT + " {folder}/site/nvidia/cuda_runtime/include, {folder}/site/nvidia/cuda_nvcc/include: "
            f"pip install 'nvidia-cuda-nvcc-cu12==12.6.*'{AGAIN}",
        ),
        ("named", CRT + " {folder}/mine: pip install 'nvidia-cuda-crt==13.0.*'" + AGAIN),
        (
            "named_nothing",
            "there is no cuda_runtime_api.h in MEMPOOL_CUDA_HEADERS=/no/such/folder: name the folder that has it"
            + AGAIN,
        ),
    ],
)
def test_what_is_missing_is_named(decisions: Decisions, machines: Path, machine: str, sentence: str) -> None:
    assert decisions[machine] == (sentence.replace("{folder}", str(machines / machine)), [], "")


def test_the_compiler_decides_about_what_is_unknown(decisions: Decisions, machines: Path) -> None:
    problem, _, _ = decisions["strange_torch"]
    assert problem.startswith("its CUDA sources do not fit torch 2.99.0+cu130 (")
    assert problem.endswith("): a later mempool may")
    assert "allocator" in problem
    problem, _, _ = decisions["broken"]
    assert problem.startswith(f"CUDA's headers in {machines}/broken/site/nvidia/cu13/include do not compile (")
    assert "not today" in problem


PACKAGES = (
    "pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*'"
)
NAME = f"name one with --config-settings=cmake.define.MEMPOOL_NVCC=PATH{AGAIN}"


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        ("nvcc_good", ""),
        ("nvcc_none", f"there is no nvcc: {PACKAGES}, or {NAME}"),
        ("nvcc_old", f"{{nvcc}} is version 12.4, and 12.5 is needed: {NAME}"),
        (
            "nvcc_other",
            f"{{nvcc}} is of CUDA 12.8, and torch 2.14.1+cu130 is built for 13.0: {PACKAGES}, or {NAME}",
        ),
        ("nvcc_mute", f"{{nvcc}} does not say its version (0): {PACKAGES}, or {NAME}"),
        ("nvcc_half", f"{{nvcc}} does not compile (sh: 1: cicc: not found): {PACKAGES}, or {NAME}"),
    ],
)
def test_kernels_are_built_where_nvcc_fits(decisions: Decisions, machines: Path, machine: str, sentence: str) -> None:
    assert decisions[machine][2] == sentence.replace("{nvcc}", str(machines / machine / "nvcc"))
