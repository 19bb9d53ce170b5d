"""What tests of checkpoints compare: the objects of a model and their contents, and the header of a file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_models import small_model
from torch import nn

from mempool.compress import meta_parameters


def skeleton(build: Callable[[], nn.Module] = small_model) -> Any:
    """The model with parameters on the meta device."""
    with meta_parameters():
        return build()


def state_of(model: nn.Module) -> dict[str, tuple[int, bytes]]:
    """Each tensor of a model by name: which object it is and what is in it."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        name: (id(tensor), b"" if tensor.is_meta else bytes(tensor.detach().cpu().view(-1).view(torch.uint8).tolist()))
        for name, tensor in tensors
    }


def modules_of(model: nn.Module) -> list[int]:
    """Which object each module of a model is."""
    return [id(module) for module in model.modules()]


def header_of(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the data begins."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), 8 + size
