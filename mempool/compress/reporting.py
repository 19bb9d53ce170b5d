"""``report``: where the bytes of a model are, and what its packed layers gain."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from mempool import _core
from mempool.nn import Int8Linear, SparseInt8Linear

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
    expected_speed: float  # times as fast as float32 for one token, where memory is what it waits for: by bytes read


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

    def table(self) -> Table:
        """A table for ``rich``."""
        from rich.table import Table

        table = Table(title="linear layers", title_justify="left", show_footer=True)
        size = _core.format_bytes
        table.add_column("layer", footer="together", overflow="fold")
        table.add_column("kind")
        table.add_column("shape", justify="right")
        table.add_column("density", justify="right")
        table.add_column("bytes", justify="right", footer=size(self.linear_bytes))
        table.add_column("speed", justify="right")
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.kind,
                f"{layer.shape[0]} x {layer.shape[1]}",
                f"{layer.density:.2f}",
                size(layer.size_bytes),
                f"{layer.expected_speed:.1f} x",
            )
        table.caption = (
            f"embeddings {size(self.embedding_bytes)}, all else {size(self.other_bytes)}, "
            f"the model {size(self.total_bytes)}; speed: expected of one token, by bytes read, against float32"
        )
        table.caption_justify = "left"
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120).print(self.table())
        return text.getvalue()


def report(model: nn.Module) -> Report:
    """Bytes, density and expected speed of every linear layer, and the bytes of embeddings and of all else."""
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
        kind = "int8" if module.pattern == "dense" else f"int8 {module.pattern}"
        density, read = module.density, module.packed_bytes
    return LayerReport(name or "(the model)", kind, shape, density, size, dense, 4 * elements / max(1, read))
