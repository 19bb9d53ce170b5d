"""Tensors on a file's mapping are those that the library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mempool.checkpoint.file_mapping import FileMapping
from mempool.checkpoint.tensor_file import TensorFile

safetensors = pytest.importorskip("safetensors.torch")

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
OTHERS = [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16]


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def test_all_types_and_shapes_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {}
    for dtype in (*TYPES, *OTHERS):
        for shape in ((), (3,), (2, 0, 3), (5, 3)):
            tensors[f"{dtype}{shape}"] = torch.randint(0, 2, shape).to(dtype)
    path = tmp_path / "model.safetensors"
    safetensors.save_file(tensors, path)
    expected = safetensors.load_file(path)
    mapping, file = FileMapping(path), TensorFile(path)
    for name, tensor in tensors.items():
        assert _bytes(file.read(name)) == _bytes(expected[name]) == _bytes(tensor)
        known = mapping.tensor(name)
        assert (known is not None) == (tensor.dtype in (*TYPES, *OTHERS[:3]))
        assert known is None or _bytes(known) == _bytes(tensor)
    assert mapping.tensor("nothing") is None


def test_what_is_not_aligned_is_left_to_the_library(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "model.safetensors"
    values = torch.tensor([1.5, -2.0])
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x07" + bytes(values.view(torch.uint8).tolist()))
    assert FileMapping(path).tensor("b") is None
    file = TensorFile(path)
    assert (file.read("a").tolist(), file.read("b").tolist()) == ([7], [1.5, -2.0])


def test_a_file_that_cannot_be_mapped_twice_is_read_by_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"a": torch.arange(3)}, path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    assert TensorFile(path).read("a").tolist() == [0, 1, 2]


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"a": torch.arange(3)}, path)
    tensor = TensorFile(path).read("a")
    path.unlink()
    tensor += 1
    assert tensor.tolist() == [1, 2, 3]
