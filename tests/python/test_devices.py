"""A kind of device is known by its entry in the list of kinds alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

import mempool
from mempool import _core
from mempool._device import KINDS, Place, allocator, parse_device, require_enabled, size
from mempool._device_cpu import cpu
from mempool._device_kind import DeviceKind, Size


class Third(DeviceKind):
    """The CPU's allocator under the name of a device that mempool does not have."""

    name = "xpu"
    is_numbered = True
    has_streams = True
    settings_variables = ("THIRD_ALLOC_CONF",)
    replay_backends: ClassVar = {"fake": "fake-device"}

    def __init__(self) -> None:
        self.reason: str | None = None
        self.error: Exception | None = None
        self.limits: list[tuple[Size | None, Size | None]] = []

    def problem(self) -> str | None:
        return self.reason

    def is_enabled(self) -> bool:
        return bool(self.limits)

    def enable(
        self, limit: Size | None, soft_limit: Size | None, shared: bool = False, reserve: Size | None = None
    ) -> None:
        if self.error is not None:
            raise self.error
        self.limits.append((limit, soft_limit))

    def disable(self) -> None:
        self.limits.clear()

    def allocator(self, index: int | None) -> _core.Device:
        return cpu()

    def made(self) -> list[_core.Device]:
        return []

    def names(self) -> list[str]:
        return ["xpu:0"]

    def whole_bytes(self, index: int) -> int:
        return 1000


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> Iterator[Third]:
    kind = Third()
    monkeypatch.setitem(KINDS, "xpu", kind)
    yield kind
    mempool.disable("cpu")


def test_every_kind_is_enabled_where_none_is_named(third: Third) -> None:
    result = mempool.enable(limit="1TiB")
    assert [*result] == ["cpu", "cuda", "xpu"]
    assert result["xpu"] is True
    assert third.limits == [(None, None)]  # a limit without a device is the CPU's
    assert mempool.get_limit("cpu") == 1 << 40
    mempool.set_limit(None, "cpu")
    assert mempool.is_enabled("xpu")
    mempool.disable()
    assert not mempool.is_enabled(None)


def test_a_kind_that_is_named_takes_the_limits(third: Third) -> None:
    assert mempool.enable("xpu", limit="1MiB", soft_limit=5) == {"xpu": True}
    assert third.limits == [("1MiB", 5)]
    assert not mempool.is_enabled("cpu")
    assert allocator() is cpu()


def test_what_cannot_be_enabled_says_why(third: Third) -> None:
    third.error = mempool.DeviceError("xpu: mempool: in use already")
    assert mempool.enable()["xpu"] == "in use already"
    with pytest.raises(mempool.DeviceError, match=r"^xpu: mempool: in use already$"):
        mempool.enable("xpu")
    third.reason = "there is none"
    assert mempool.enable()["xpu"] == "there is none"
    with pytest.raises(mempool.DeviceError, match=r"^xpu: there is none\.$"):
        mempool.enable("xpu")


def test_messages_name_every_kind(third: Third) -> None:
    mempool.enable("cpu")
    mempool.enable("xpu")
    with pytest.raises(mempool.DeviceError, match=r"enabled for cpu and for xpu: name the device\."):
        allocator()
    with pytest.raises(mempool.ConfigError, match="it knows 'cpu', 'cuda', 'pinned' and 'xpu'"):
        parse_device("mps")
    mempool.disable("xpu")
    with pytest.raises(mempool.NotEnabledError, match="not enabled for xpu in this process"):
        require_enabled("xpu:0", "x")


def test_settings_of_its_own_allocator_are_named(third: Third, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THIRD_ALLOC_CONF", "x:y")
    mempool.enable("cpu")
    with pytest.warns(UserWarning, match="mempool does not read it"):
        mempool.enable("xpu")


def test_percentages_are_of_the_kind(third: Third) -> None:
    class Named:
        name = "xpu:3"

    assert size("50%", "limit", Named()) == 500  # type: ignore[arg-type]
    assert parse_device("xpu:3") == Place("xpu", 3)
    assert parse_device(torch.device("xpu", 3)) == Place("xpu", 3)


def test_a_kind_that_only_its_name_enables(third: Third) -> None:
    third.by_name_only = True
    assert "xpu" not in mempool.enable()
    assert mempool.enable("xpu") == {"xpu": True}


def test_pinned_memory_is_no_device_of_torchs() -> None:
    assert str(parse_device("pinned")) == "pinned"
    with pytest.raises(mempool.ConfigError, match="unknown device 'pinned:0'"):
        parse_device("pinned:0")
    assert not mempool.is_enabled("pinned")
    if torch.version.cuda is None:
        with pytest.raises(mempool.DeviceError, match=r"^pinned: torch \S+ has no CUDA\.$"):
            mempool.enable("pinned")
        with pytest.raises(mempool.DeviceError, match="has no CUDA"):
            mempool.MemoryPool("p", device="pinned")
