"""``save``: writes a model to one safetensors file, which ``load`` reads back exactly."""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mempool._files import atomic_path
from mempool.checkpoint.tensor_file import metadata_of, os_error
from mempool.compress.layers import require_module
from mempool.compress.sharing import memory_of, overlap
from mempool.packed.linear import Int8Linear, SparseInt8Linear


def save(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    """Writes the model's parameters and persistent buffers to a safetensors file, which ``load`` reads.

    Packed layers are written packed, and the masks of ``torch.nn.utils.prune`` as they are. A tensor that the model has
    under several names is written once, and ``load`` finds it under each. The file's metadata has a CRC-32 of each
    packed layer and of each other tensor, by name. The data is written to a new file, which takes the place of an
    existing one once it is on the disk. Tensors on other devices are first copied to the CPU, all at once.

    Raises ValueError, before anything is written, naming each tensor that ``load`` could not restore exactly: tensors
    that overlap in memory without being the same, sparse or quantized tensors, tensors on the meta device, types that
    safetensors does not know, and an extra state that is not None. Raises OSError, naming the file, where it cannot be
    written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise RuntimeError("writing a checkpoint needs a package: pip install safetensors") from error
    require_module("model", model)
    path = Path(checkpoint)
    tensors, tied = _distinct(model)
    _require_types(tensors)
    packed = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, (Int8Linear, SparseInt8Linear))
    }
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    metadata = metadata_of(plain, packed, tied)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no regular file, and would be replaced by one", os.fspath(path))
    with atomic_path(path) as new:
        try:
            save_file(plain, new, metadata)
        except SafetensorError as error:
            raise (os_error(error, path) or error) from error


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor of the model under its first name, and for each further name of a tensor its first one."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Hashable, str] = {}
    state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if value is None:
            continue
        _require_plain(name, value)
        # Without elements there is no memory to share, and many have the same address.
        known = first.setdefault(memory_of(value) if value.numel() else id(value), name)
        if known == name:
            tensors[name] = value.detach().as_subclass(Tensor)
        else:
            tied[name] = known
    if (found := overlap(tensors.items())) is not None:
        raise ValueError(
            f"{found[0]!r} and {found[1]!r} overlap in memory and are not the same tensor, which would not come back: "
            f"give one memory of its own, as by .data = .data.clone()."
        )
    return tensors, tied


def _require_plain(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name!r} is no tensor but of type {type(value).__name__}, as from get_extra_state, and safetensors holds "
            "tensors alone: save it apart (torch.save), and let state_dict have a tensor or None there."
        )
    problem = None
    if is_lazy(value):
        problem = "has no shape yet: run the model once"
    elif value.is_meta:
        problem = "is on the meta device and has no values: load it first"
    elif value.is_quantized:
        problem = "is quantized by torch: dequantize() it"
    elif value.layout is not torch.strided or value.is_nested:
        problem = f"is {value.layout}, not dense: take to_dense() of it"
    elif is_traceable_wrapper_subclass(value):
        problem = f"is of type {type(value).__name__}, which holds other tensors: make it a plain one"
    if problem is not None:
        raise ValueError(f"{name!r} {problem}, before it is saved.")


def _require_types(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for types that safetensors does not know, found by saving an empty tensor of each."""
    from safetensors.torch import save as saved_bytes

    for dtype in {tensor.dtype for tensor in tensors.values()}:
        try:
            saved_bytes({"empty": torch.empty(0, dtype=dtype, device="cpu")})
        except Exception as error:
            name = next(name for name, tensor in tensors.items() if tensor.dtype is dtype)
            raise ValueError(
                f"{name!r} is {dtype}, which safetensors has not: convert it before it is saved."
            ) from error


def _plain(tensor: Tensor) -> Tensor:
    """A tensor with the values that go to the file: torch's lazy negations and conjugations are resolved."""
    return tensor.resolve_conj().resolve_neg().cpu().contiguous()
