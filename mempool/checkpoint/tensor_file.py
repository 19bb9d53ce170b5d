"""Reads a safetensors file: its names, its tensors, and whether they match the checksums of ``save``."""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mempool.checkpoint.file_mapping import FileMapping

# Entries of the file's metadata: JSON objects of strings.
CHECKSUMS = "mempool.checksums"  # what was saved, by packed layer or, for all other tensors, by name
TIED = "mempool.tied"  # under which name a tensor is saved that the model has under this one, too

JOIN = (
    "join its shards first: collect safetensors.torch.load_file(shard) of each in one dictionary, and write that with "
    "safetensors.torch.save_file."
)

# Files of other kinds that people pass as models: how each begins, what it is, and what to do.
_PICKLE = "as torch.save writes: fill a model by torch.load(path, weights_only=True), and save that with compress.save."
_OTHERS = {
    b"GGUF": "a GGUF file: transformers reads it, from_pretrained(folder, gguf_file=...); compress.save writes that.",
    b"PK\x03\x04": f"a zip file, {_PICKLE}",
    b"\x80": f"a pickle, {_PICKLE}",
    b"\x89HDF": "an HDF5 file: save the model as safetensors.",
    b"version https://git-lfs": "the pointer to a file in Git LFS: `git lfs pull` brings the file.",
}


class TensorFile:
    """A safetensors file whose tensors go by the model's names, which lack the file's prefix."""

    def __init__(self, path: str | os.PathLike[str], prefix: str = "") -> None:
        """Raises OSError for a file that cannot be read, ValueError for one that is not safetensors, or for several."""
        self.path = _one_file(path)
        self.prefix = prefix
        self._file = _opened(self.path)
        self._mapping = _mapped(self.path)
        self._keys: dict[str, None] = dict.fromkeys(self._file.keys())
        self._metadata: dict[str, str] = self._file.metadata() or {}
        self._tied = self._objects(TIED)
        if lost := next((name for name, kept in self._tied.items() if kept not in self._keys), None):
            raise ValueError(f"'{self.path}' is damaged: it has not what {lost!r} is tied to. {_AGAIN}")
        self._used: set[str] = set()
        self._mapped: dict[str, Tensor] = {}
        self._made: dict[str, Callable[[], Tensor]] = {}

    def _objects(self, entry: str) -> dict[str, str]:
        """An entry of the metadata; empty in files of other programs or of earlier versions."""
        try:
            value = json.loads(self._metadata.get(entry, "{}"))
        except ValueError:
            value = None
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise ValueError(f"'{self.path}' is damaged: '{entry}' of its metadata cannot be read. {_AGAIN}")
        return value

    @property
    def names(self) -> list[str]:
        """All names, also further names of a tensor that was saved under its first one."""
        return [key.removeprefix(self.prefix) for key in self.keys if key.startswith(self.prefix)]

    @property
    def keys(self) -> list[str]:
        """The file's own names: with the prefix, and those that do not begin with it."""
        return [*self._keys, *self._tied]

    @property
    def is_used(self) -> bool:
        """Whether any tensor was read for the model."""
        return bool(self._used)

    def unused(self) -> tuple[str, ...]:
        """The file's own names of the tensors that were not read, in its order."""
        return tuple(key for key in self._keys if key not in self._used)

    def find(self, names: Iterable[str]) -> str | None:
        """The first of these names that the file has."""
        return next((name for name in names if self.has(name)), None)

    def has(self, name: str) -> bool:
        return name in self._made or bool(self._keys_of(name))

    def make(self, name: str, of: Callable[[], Tensor]) -> None:
        """From now on reading this name calls ``of``, which makes a new tensor of others each time."""
        self._made[name] = of

    def _keys_of(self, name: str) -> tuple[str, ...]:
        """The keys of a name: itself, or those of weight and mask of torch.nn.utils.prune; empty if there are none."""
        key = self._saved_as(self.prefix + name)
        if key in self._keys:
            return (key,)
        masked = (self._saved_as(f"{self.prefix}{name}_orig"), self._saved_as(f"{self.prefix}{name}_mask"))
        return masked if all(key in self._keys for key in masked) else ()

    def _saved_as(self, key: str) -> str:
        return key if key in self._keys else self._tied.get(key, key)

    def read(self, name: str) -> Tensor:
        """A tensor on the file's mapping, which is no memory of a pool. A weight with a mask is a new tensor."""
        if (make := self._made.get(name)) is not None:
            return make()
        keys = self._keys_of(name)
        self._used.update(keys)
        tensors = [self._tensor(key) for key in keys]
        if len(tensors) == 2 and tensors[0].shape != tensors[1].shape:
            raise ValueError(f"{keys[0]!r} and its mask {keys[1]!r} in '{self.path}' are of different shapes.")
        return tensors[0] if len(tensors) == 1 else tensors[0] * tensors[1]

    def _tensor(self, key: str) -> Tensor:
        if (known := self._mapped.get(key)) is not None:
            return known
        tensor = self._mapping.tensor(key) if self._mapping is not None else None
        self._mapped[key] = tensor if tensor is not None else self._by_library(key)
        return self._mapped[key]

    def _by_library(self, key: str) -> Tensor:
        from safetensors import SafetensorError

        try:
            tensor: Tensor = self._file.get_tensor(key)
        except (SafetensorError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{key!r} of '{self.path}' cannot be read as a tensor of torch: {error}") from error
        return tensor

    def verify(self) -> None:
        """Compares all bytes with the saved checksums; raises ValueError naming the damaged layer or tensor."""
        expected = self._objects(CHECKSUMS)
        if not expected:
            return
        units: dict[str, list[str]] = {name: [] for name in expected}
        for key in self._keys:
            unit = key if key in units else key.rpartition(".")[0]
            if unit not in units:
                raise ValueError(f"'{self.path}' is damaged: {key!r} was not in it when it was saved. {_AGAIN}")
            units[unit].append(key)
        for unit, keys in units.items():
            if checksum((key, self._tensor(key)) for key in sorted(keys)) != expected[unit]:
                what = f"tensor {unit!r}" if unit in self._keys else f"layer {unit!r}"
                raise ValueError(
                    f"{what} of '{self.path}' is damaged: its bytes are not those that were saved. {_AGAIN}"
                )


_AGAIN = "Copy or save the file again."


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """CRC-32 of names, types, shapes and bytes of tensors on the CPU, contiguous."""
    value = 0
    for name, tensor in tensors:
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), value)
        if tensor.numel():
            value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def metadata_of(tensors: Mapping[str, Tensor], packed: set[str], tied: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file of these tensors. ``packed``: names of packed layers, whose tensors have one checksum."""
    units: dict[str, list[str]] = {}
    for name in tensors:
        layer = name.rpartition(".")[0]
        units.setdefault(layer if layer in packed else name, []).append(name)
    sums = {unit: checksum((name, tensors[name]) for name in sorted(names)) for unit, names in units.items()}
    metadata = {"format": "pt", CHECKSUMS: json.dumps(sums)}
    return {**metadata, TIED: json.dumps(tied)} if tied else metadata


def os_error(error: Exception, path: Path) -> OSError | None:
    """The OSError behind an error of safetensors, which has the system's error as text alone."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))) is not None:
        number = int(found[1])
    return None if number is None else OSError(number, os.strerror(number), os.fspath(path))


def _one_file(path: Any) -> Path:
    if isinstance(path, (list, tuple, set, dict)):
        raise ValueError(f"load reads one safetensors file, and is given {len(path)}: {JOIN}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"the checkpoint is the path of a safetensors file, not {type(path).__name__}.")
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, _advice_for(file), os.fspath(file))
    if file.exists() and not file.is_file():
        raise ValueError(f"'{file}' is no regular file: give the path of a safetensors file.")
    with file.open("rb") as stream:
        start, size = stream.read(64), file.stat().st_size
    if not start:
        raise ValueError(f"'{file}' is empty: it was not written to its end. {_AGAIN}")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return file
    for begin, what in _OTHERS.items():
        if start.startswith(begin):
            raise ValueError(f"'{file}' is no safetensors file but {what}")
    if start.lstrip().startswith((b"{", b"[")):
        raise ValueError(f"'{file}' is JSON, such as the index of a model in shards, and load reads one file: {JOIN}")
    return file


def _advice_for(folder: Path) -> str:
    """Which file of a folder to name instead of it."""
    try:
        files = sorted(file.name for file in folder.iterdir() if file.suffix == ".safetensors")
    except OSError:
        files = []
    if len(files) > 1:
        return f"load reads one file, and this folder has {len(files)} of safetensors: {JOIN.removesuffix('.')}"
    if files:
        return f"load reads a file, and this is a folder: give its file {files[0]!r}"
    return "load reads a safetensors file, and this is a folder that has none"


def _mapped(path: Path) -> FileMapping | None:
    try:
        return FileMapping(path)
    except OSError:  # no address space for another one: the library has its own
        return None


def _opened(path: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise RuntimeError("reading a checkpoint needs a package: pip install safetensors") from error
    try:
        return safe_open(path, framework="pt")
    except OSError as error:
        raise (os_error(error, path) or error) from error
    except SafetensorError as error:
        raise ValueError(f"'{path}' is no safetensors file, or not written to its end: {error}. {_AGAIN}") from error
