"""Makes tensors on the mapping of a file, in microseconds each: a model of many small layers has tens of thousands."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Tensors of other types are read by the safetensors library, which knows them all.
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class FileMapping:
    """The mapped bytes of a safetensors file whose header the library has checked."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be mapped."""
        with path.open("rb") as stream:
            # A private mapping: writes stay in this process. torch warns of memory that is read-only.
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._start = 8 + int.from_bytes(self._bytes[:8], "little")
        self._header: dict[str, Any] = json.loads(self._bytes[8 : self._start])

    def tensor(self, key: str) -> Tensor | None:
        """A tensor of the file; None for another type, or where it is not aligned for its type."""
        entry = self._header.get(key)
        dtype = _TYPES.get(entry["dtype"]) if entry is not None else None
        if entry is None or dtype is None:
            return None
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        offset, count = self._start + begin, math.prod(shape)
        if offset % dtype.itemsize or end - begin != count * dtype.itemsize:
            return None
        if not count:
            return torch.empty(shape, dtype=dtype, device="cpu")
        return torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=offset).view(shape)
