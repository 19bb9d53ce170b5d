"""Operators and packed layers are what they were: schemas and bytes of ``golden/``, which an earlier build wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mempool.nn import Int8Linear, SparseInt8Linear

GOLDEN = Path(__file__).with_name("golden")
OPERATORS = {"dense": "int8", "unstructured": "bitmap", "block4": "block4", "2:4": "sparse24"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(GOLDEN / "layers.pt", weights_only=True)
    return loaded


def test_operators_have_the_same_schemas() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mempool::")}
    names -= {"mempool::begin", "mempool::end"}  # torch's own, for its MemPools, from 2.15 on
    schemas = sorted(str(torch._C._get_schema(*name.split(".") if "." in name else (name, ""))) for name in names)
    assert schemas == (GOLDEN / "schemas.txt").read_text().splitlines()


@pytest.mark.parametrize("name", [f"{operator}_linear" for operator in OPERATORS.values()])
def test_layers_run_where_they_did(name: str) -> None:
    keys = ("CPU", "CUDA", "Meta", "Autograd")
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"mempool::{name}", key) for key in keys)


@pytest.mark.parametrize("pattern", OPERATORS)
def test_layers_that_were_saved_load(golden: dict[str, Any], pattern: str) -> None:
    saved = golden[pattern]
    layer = Int8Linear(37, 66) if pattern == "dense" else SparseInt8Linear(37, 66)
    layer.load_state_dict(saved["state"])
    assert layer.pattern == pattern
    assert torch.equal(layer.dequantize(), saved["weight"])
    if "output" in saved:
        assert torch.equal(layer(golden["input"]), saved["output"])
    written = layer.state_dict()
    assert written.keys() == saved["state"].keys()
    for name, value in saved["state"].items():
        assert written[name].dtype == value.dtype
        assert torch.equal(written[name], value)


@pytest.mark.parametrize("pattern", OPERATORS)
def test_packing_makes_the_same_bytes(golden: dict[str, Any], pattern: str) -> None:
    state = golden[pattern]["state"]
    weight = (golden[pattern]["weight"] / state["scales"].unsqueeze(1)).round().to(torch.int8)
    packed = getattr(torch.ops.mempool, f"pack_{OPERATORS[pattern]}")(weight)
    stored = [
        value for name, value in state.items() if name in ("panels", "masks", "values", "offsets", "places", "sums")
    ]
    assert len(packed) == len(stored)
    for made, value in zip(packed, stored, strict=True):
        assert made.dtype == value.dtype
        assert torch.equal(made, value)
