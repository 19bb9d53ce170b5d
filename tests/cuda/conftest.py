"""torch's CUDA build, on the stand-in or, with MEMPOOL_TEST_DEVICE=real, on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import control
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
IS_REAL = os.environ.get("MEMPOOL_TEST_DEVICE", "standin") == "real"
LIBRARIES = Path(os.environ.get("CUDA_STANDIN_LIB", ROOT / "build" / "cuda_standin" / "lib"))
LOADED = None if IS_REAL else control.load(LIBRARIES)  # before anything imports torch


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """What torch must be told where kernels do nothing."""
    import torch

    if not IS_REAL:
        torch.backends.cudnn.enabled = False
        torch.backends.cuda.enable_cudnn_sdp(False)
    assert torch.cuda.is_available()


@pytest.fixture
def standin() -> Iterator[control.Standin]:
    """The controls, with nothing counted; tests that need them are skipped on a GPU."""
    if LOADED is None:
        pytest.skip("needs the controls of the stand-in")
    LOADED.reset()
    yield LOADED
    LOADED.reset()
    LOADED.set_capacity(16 << 30)
