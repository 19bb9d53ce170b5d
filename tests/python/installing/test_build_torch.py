"""What the build makes of the torch that it meets, and the line that it prints."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fake_machines import AGAIN, CRT, PATH, ROOT, RUNS, cmake, fake_torch

from mempool import _torch_cpu

FACTS = ROOT / "csrc" / "bindings" / "torch_facts.py"


def torch_facts(folder: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-S", str(FACTS)],  # without site-packages, and so without the torch of these tests
        env={"PATH": PATH, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_no_torch_is_told_from_one_that_does_not_run(tmp_path: Path) -> None:
    problem = torch_facts(tmp_path)["problem"]
    assert problem == (
        f"mempool is built against the torch that it will run with, and {sys.executable} finds none. "
        "Run:  pip install torch && pip install --no-build-isolation ."
    )
    (tmp_path / "torch").mkdir()  # what an uninstalled one may leave behind
    assert torch_facts(tmp_path)["problem"] == problem


DEPENDENCIES = "Install the packages that this torch depends on:  pip install torch==2.14.1"


@pytest.mark.parametrize(
    ("raised", "reason", "advice"),
    [
        (
            "ImportError('libcudart.so.13: cannot open shared object file: No such file or directory')",
            "libcudart.so.13 is missing",
            DEPENDENCIES,
        ),
        ("OSError('libcublas.so.13: cannot open shared object file')", "libcublas.so.13 is missing", DEPENDENCIES),
        (
            "ValueError('libcublas.so.*[0-9] not found in the system path [\\'/x\\', \\'/y\\']')",
            "libcublas.so is missing",
            DEPENDENCIES,
        ),
        (
            "ModuleNotFoundError(\"No module named 'sympy'\")",
            "ModuleNotFoundError: No module named 'sympy'",
            DEPENDENCIES,
        ),
        ("ImportError('x.so: undefined symbol: f\\nmore')", "ImportError: x.so: undefined symbol: f", None),
        ("RuntimeError()", "RuntimeError", None),
    ],
)
def test_why_torch_does_not_run(tmp_path: Path, raised: str, reason: str, advice: str | None) -> None:
    folder = fake_torch(tmp_path, f"raise {raised}")
    advice = advice or f'It has to be mended first:  {sys.executable} -c "import torch"'
    assert torch_facts(tmp_path) == {
        "problem": f"torch 2.14.1+cu130 is installed in {folder}, but cannot be imported: {reason}. {advice}"
    }


def test_a_package_that_is_no_torch(tmp_path: Path) -> None:
    folder = fake_torch(tmp_path, "", version=None)
    problem = str(torch_facts(tmp_path)["problem"])
    assert problem.startswith(f"torch is installed in {folder}, but cannot be imported: AttributeError: ")


def test_facts_of_a_torch_that_runs(tmp_path: Path) -> None:
    folder = fake_torch(tmp_path, RUNS)
    (tmp_path / "nvidia/cu13").mkdir(parents=True)
    assert torch_facts(tmp_path) == {
        "problem": "",
        "version": "2.14.1+cu130",
        "folder": str(folder),
        "new_abi": 1,
        "cuda": "13.0",
        "nvidia": str(tmp_path / "nvidia"),
    }


def test_the_build_says_one_line_and_remembers_it(tmp_path: Path) -> None:
    torch = fake_torch(tmp_path / "site", RUNS)
    (torch / "lib").mkdir()
    for name in ("libc10_cuda.so", "libtorch_cuda.so"):
        (torch / "lib" / name).touch()
    half = tmp_path / "half"
    half.mkdir()
    (half / "cuda_runtime_api.h").write_text("#define CUDART_VERSION 13000\n")
    (half / "cuda_runtime.h").write_text('#include "crt/host_config.h"\n')
    pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True).stdout
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.strip()}",
        f"-DMEMPOOL_CUDA_HEADERS={half}",
    ]

    def configure(choice: str) -> subprocess.CompletedProcess[str]:
        folders = ("-S", str(ROOT), "-B", str(tmp_path / "build"))
        return cmake(*folders, *options, f"-DMEMPOOL_CUDA={choice}", PYTHONPATH=str(tmp_path / "site"))

    reason = f"{CRT} {half}: pip install 'nvidia-cuda-crt==13.0.*'{AGAIN}"
    done = configure("auto")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "CPU alone" in line] == [
        f"-- mempool is built for the CPU alone: {reason}."
    ]
    remembered = (tmp_path / "build/csrc/bindings/torch-2.14/build_facts.h").read_text()
    assert f'MEMPOOL_WITHOUT_CUDA R"why({reason})why"' in remembered
    assert f'MEMPOOL_WITHOUT_CUDA_KERNELS R"why({reason})why"' in remembered

    done = configure("on")
    assert done.returncode != 0
    assert f"MEMPOOL_CUDA=on, and the CUDA half cannot be built: {reason}." in sentences(done.stderr)

    (torch / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    done = configure("auto")
    assert done.returncode != 0
    problem = f"torch 2.14.1+cu130 is installed in {torch}, but cannot be imported: libcudart.so.13 is missing."
    assert f"{problem} {DEPENDENCIES}" in sentences(done.stderr)


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        (["2.9.1+cu128", "2.13.0+cpu"], ""),
        (
            ["2.77.0"],
            "-- torch 2.77 is newer than {newest}, the newest that mempool was tested with; it is built for it.",
        ),
        (
            ["2.13.0", "2.13.1"],
            "MEMPOOL_TORCHES names two torches of release 2.13: one serves for all of its patches.",
        ),
        (["2.13.0", ""], "{site}/1/torch is no package of torch (FileNotFoundError: "),
    ],
)
def test_a_build_for_several_torches(tmp_path: Path, versions: list[str], said: str) -> None:
    for place, version in enumerate(versions):
        torch = tmp_path / str(place) / "torch"
        (torch / "lib").mkdir(parents=True)
        (torch / "lib" / "libc10.so").write_bytes(b"_ZN3c105ErrorC1ENSt7__cxx1112basic_string")
        if version:
            (torch / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = None\n")
    pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True).stdout
    done = cmake(
        *("-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DPython_EXECUTABLE={sys.executable}"),
        f"-Dpybind11_DIR={pybind11.strip()}",
        f"-DMEMPOOL_TORCHES={';'.join(str(tmp_path / str(place) / 'torch') for place in range(len(versions)))}",
    )
    newest = _torch_cpu.newest_tested_torch
    expected = said.format(newest=newest, site=tmp_path)
    assert expected in "\n".join(sentences(done.stdout) + sentences(done.stderr))
    folders = sorted(path.name for path in (tmp_path / "build/csrc/bindings").glob("torch-*"))
    if not said:
        assert folders == ["torch-2.13", "torch-2.9"]
    assert ("newer than" in done.stdout) == ("newer than" in said)
    assert done.returncode == (0 if not said or "newer" in said else 1)


def test_a_python_without_the_global_lock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = runpy.run_path(str(FACTS))["facts"]
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))
    assert facts()["problem"] == (
        f"{sys.executable} is a free-threaded build of Python, which mempool does not support yet: "
        "use one with the GIL."
    )


def sentences(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]
