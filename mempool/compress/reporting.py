"""``report``: how the bytes of a model are distributed, and what its packed layers gain."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from mempool import _core
from mempool._text import render
from mempool.packed.linear import Int8Linear, SparseInt8Linear

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LayerReport:
    """One linear layer."""

    name: str
    kind: str  # "float32", "int8", "int8 unstructured", "int8 block4", …
    shape: tuple[int, int]  # outputs, inputs
    density: float  # 0 to 1
    size_bytes: int  # with bias and scales
    dense_bytes: int  # the same layer in float32
    expected_speed: float  # times as fast as float32 for one token, by the bytes that are read


@dataclass(frozen=True)
class Report:
    """The bytes of a model. Parameters and buffers that are shared count once."""

    layers: list[LayerReport] = field(default_factory=list)
    linear_bytes: int = 0
    embedding_bytes: int = 0
    other_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.linear_bytes + self.embedding_bytes + self.other_bytes

    def table(self, grouped: bool = False) -> Table:
        """A table for ``rich``.

        Args:
            grouped: one row for all layers of one kind and shape whose names differ in their numbers alone.
        """
        from rich.table import Table
        from rich.text import Text  # brackets in a name are not markup

        table = Table(title="linear layers", title_justify="left", show_footer=True)
        size = _core.format_bytes
        table.add_column("layer", footer="together", overflow="fold")
        table.add_column("kind")
        table.add_column("shape", justify="right")
        table.add_column("density", justify="right")
        table.add_column("bytes", justify="right", footer=size(self.linear_bytes))
        table.add_column("speed", justify="right")
        for layers in _groups(self.layers) if grouped else [[layer] for layer in self.layers]:
            first = layers[0]
            count = f" x {len(layers)}" if len(layers) > 1 else ""
            table.add_row(
                Text(_pattern([layer.name for layer in layers]) + count),
                first.kind,
                f"{first.shape[0]} x {first.shape[1]}",
                _range([layer.density for layer in layers], 2),
                size(sum(layer.size_bytes for layer in layers)),
                f"{_range([layer.expected_speed for layer in layers], 1)} x",
            )
        table.caption = (
            f"embeddings {size(self.embedding_bytes)}, all else {size(self.other_bytes)}, "
            f"the model {size(self.total_bytes)}; speed: expected of one token, by bytes read, against float32"
        )
        table.caption_justify = "left"
        return table

    def __str__(self) -> str:
        return render(self.table(), width=120)


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a number that is a whole part of a name


def _groups(layers: list[LayerReport]) -> list[list[LayerReport]]:
    groups: dict[tuple[str, str, tuple[int, int]], list[LayerReport]] = {}
    for layer in layers:
        groups.setdefault((_NUMBER.sub("{}", layer.name), layer.kind, layer.shape), []).append(layer)
    return list(groups.values())


def _pattern(names: list[str]) -> str:
    """One pattern, as ``layer.{0-11}.query``, for names that differ in their numbers."""
    columns = zip(*(map(int, _NUMBER.findall(name)) for name in names), strict=True)
    texts = iter([_numbers(sorted(set(column))) for column in columns])
    return _NUMBER.sub(lambda match: next(texts), names[0])


def _numbers(sorted_numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted_numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return texts[0] if len(sorted_numbers) == 1 else "{" + ",".join(texts) + "}"


def _range(values: list[float], digits: int) -> str:
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least}-{most}"


def report(model: nn.Module) -> Report:
    """Reports bytes, density and expected speed of every linear layer, and the bytes of embeddings and of the rest."""
    layers = []
    sizes = {"linear": 0, "embedding": 0, "other": 0}
    seen: set[int] = set()
    for name, module in model.named_modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        own = [tensor for tensor in tensors if tensor is not None and id(tensor) not in seen]
        seen.update(id(tensor) for tensor in own)
        size = sum(tensor.nbytes for tensor in own)
        is_embedding = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        is_linear = isinstance(module, (nn.Linear, Int8Linear, SparseInt8Linear))
        sizes["linear" if is_linear else "embedding" if is_embedding else "other"] += size
        if isinstance(module, (nn.Linear, Int8Linear, SparseInt8Linear)):
            layers.append(_layer(name, module, size))
    return Report(layers, sizes["linear"], sizes["embedding"], sizes["other"])


def _layer(name: str, module: nn.Linear | Int8Linear | SparseInt8Linear, size: int) -> LayerReport:
    shape = (module.out_features, module.in_features)
    elements = shape[0] * shape[1]
    dense = 4 * (elements + (shape[0] if module.bias is not None else 0))
    if isinstance(module, nn.Linear):
        kind = str(module.weight.dtype).removeprefix("torch.")
        density = float("nan") if module.weight.is_meta else int(module.weight.count_nonzero()) / max(1, elements)
        read = module.weight.nbytes
    else:
        kind = f"int8 {module.pattern}" if isinstance(module, SparseInt8Linear) else "int8"
        density, read = module.density, module.packed_bytes
    return LayerReport(name or "(the model)", kind, shape, density, size, dense, 4 * elements / max(1, read))
