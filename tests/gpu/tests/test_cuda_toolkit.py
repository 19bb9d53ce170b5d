"""Where CUDA's headers and programs are looked for."""

from __future__ import annotations

from pathlib import Path

import cuda_toolkit
import pytest


def folder(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return root


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The toolkits of this machine."""
    monkeypatch.delenv("CUDA_INCLUDE", raising=False)
    roots: list[Path] = []
    monkeypatch.setattr(cuda_toolkit, "roots", lambda: iter(roots))
    return roots


RUNTIME, CRT = "include/cuda_runtime_api.h", "include/crt/host_config.h"


def test_whole_headers_come_before_a_half(found: list[Path], tmp_path: Path) -> None:
    found += [folder(tmp_path / "half", RUNTIME), folder(tmp_path / "whole", RUNTIME, CRT)]
    assert cuda_toolkit.header_folders() == [tmp_path / "whole" / "include"]


def test_two_halves_make_a_whole(found: list[Path], tmp_path: Path) -> None:
    found += [folder(tmp_path / "runtime", RUNTIME), folder(tmp_path / "crt", CRT)]
    assert cuda_toolkit.header_folders() == [tmp_path / "runtime" / "include", tmp_path / "crt" / "include"]


def test_what_is_missing_is_named(found: list[Path], tmp_path: Path) -> None:
    with pytest.raises(cuda_toolkit.ToolkitError, match=r"no cuda_runtime_api.h\. Name"):
        cuda_toolkit.header_folders()
    found.append(folder(tmp_path, RUNTIME))
    with pytest.raises(cuda_toolkit.ToolkitError, match=r"no crt/host_config\.h"):
        cuda_toolkit.header_folders()


def test_the_folder_that_is_named_is_taken(found: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found.append(folder(tmp_path / "whole", RUNTIME, CRT))
    monkeypatch.setenv("CUDA_INCLUDE", str(tmp_path / "named"))
    assert cuda_toolkit.header_folders() == [tmp_path / "named"]


def test_a_wrapper_of_nvcc_is_asked_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = folder(tmp_path / "wrapped", "bin/nvcc") / "bin" / "nvcc"
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={tmp_path}/real' >&2\n")
    monkeypatch.setenv("PATH", str(wrapper.parent))
    assert tmp_path / "real" in list(cuda_toolkit.roots())


def test_a_program_of_a_toolkit_is_found_where_path_has_none(
    found: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert cuda_toolkit.program("compute-sanitizer") is None
    found.append(folder(tmp_path / "toolkit", "compute-sanitizer/compute-sanitizer"))
    assert cuda_toolkit.program("compute-sanitizer") == tmp_path / "toolkit/compute-sanitizer/compute-sanitizer"
