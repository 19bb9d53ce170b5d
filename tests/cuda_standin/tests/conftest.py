"""Each test gets the stand-in with nothing counted, and must give back all memory and streams."""

from __future__ import annotations

import os
from collections.abc import Iterator

import control
import pytest

LIBRARIES = os.environ.get("CUDA_STANDIN_LIB", "")


@pytest.fixture(scope="session")
def loaded() -> control.Standin:
    """The stand-in, in this process."""
    if not LIBRARIES:
        pytest.skip("CUDA_STANDIN_LIB does not name the folder of the built stand-in")
    return control.load(LIBRARIES)


@pytest.fixture
def standin(loaded: control.Standin) -> Iterator[control.Standin]:
    """The stand-in with nothing counted; afterwards nothing may be left."""
    loaded.reset()
    loaded.set_capacity(1 << 30)
    yield loaded
    loaded.reset()
    assert loaded.live() == control.Live(0, 0, 0, 0)
    assert loaded.used() == 0
