"""After an error of `load` the model is as it was, and the error says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_states import modules_of, skeleton, state_of
from small_models import small_model, token_batches
from torch import nn

import mempool
from mempool import compress
from mempool.compress import LoadReport, convert, load, prune_, save
from mempool.nn import SparseInt8Linear

safetensors = pytest.importorskip("safetensors.torch")


# Errors after which the model is what it was


@pytest.mark.parametrize("build", [small_model, skeleton])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("batch", [torch.full((2, 3), 60), "no batch", None])
def test_data_that_cannot_be_used_leaves_the_model_as_it_was(
    file: Path, build: Callable[[], nn.Module], method: str, batch: Any
) -> None:
    save(small_model(), file)
    torch.manual_seed(4)
    model = build()
    if not model[0].weight.is_meta:
        nn.init.normal_(model[0].weight)
    before, modules = state_of(model), modules_of(model)
    batches = [] if batch is None else [batch]
    with pytest.raises((ValueError, TypeError, IndexError)):
        load(model, file, sparsity=0.5, method=method, calibration=batches)
    assert (state_of(model), modules_of(model)) == (before, modules)


def test_fused_paths_of_torch_are_left_as_they_were(file: Path) -> None:
    def build() -> nn.TransformerEncoder:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), num_layers=1).eval()

    save(build(), file)
    model = build()
    before = state_of(model)
    with pytest.raises(ValueError, match="no batch"):
        load(model, file, sparsity=0.5, method="wanda", calibration=[])
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (True, 1)
    assert state_of(model) == before
    load(model, file)
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (False, 0)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_layers_run_as_before_after_data_that_cannot_be_used(file: Path, is_compiled: bool) -> None:
    def build(first: nn.Module) -> nn.Sequential:
        if is_compiled:
            first = torch.compile(first, backend="eager")  # type: ignore[assignment]
        return nn.Sequential(first, nn.ReLU(), nn.Linear(64, 64))

    source = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    source = convert(prune_(source, 0.7, skip=["2"]), skip=["2"])
    save(build(source[0]), file)
    input = torch.randn(2, 64)
    for first in (SparseInt8Linear(64, 64, pattern="block4"), nn.Linear(64, 64)):
        model = build(first)
        before = model(input)
        with pytest.raises(RuntimeError, match="7"):
            load(model, file, sparsity=0.5, method="wanda", calibration=[torch.randn(3, 7)])
        assert torch.equal(model(input), before)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_limit_that_is_reached_leaves_the_model_as_it_was(enabled: None, file: Path, sparsity: float) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Embedding(16, 16), *(nn.Linear(256, 256) for _ in range(8)))

    save(build(), file)
    for model in (build(), skeleton(build)):
        before, modules = state_of(model), modules_of(model)
        pool = mempool.MemoryPool("small", device="cpu", limit="384KiB")
        with mempool.use_pool(pool), pytest.raises(mempool.OutOfMemoryError):
            load(model, file, sparsity=sparsity)
        assert (state_of(model), modules_of(model)) == (before, modules)
        assert pool.used_bytes() == 0


def test_a_weight_that_is_no_number_leaves_the_model_as_it_was(file: Path) -> None:
    source = small_model()
    with torch.no_grad():
        source[4].weight[0] = float("nan")
    save(source, file)
    model = small_model()
    before, modules = state_of(model), modules_of(model)
    for how in ({}, {"sparsity": 0.5}, {"sparsity": 0.5, "method": "wanda", "calibration": token_batches()}):
        with pytest.raises(ValueError, match="layer '4': `weight` has a NaN"):
            load(model, file, **how)
    assert (state_of(model), modules_of(model)) == (before, modules)


# What is no file of one model


def test_files_of_other_kinds_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = small_model()
    before = state_of(model)

    def refused(name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load(model, tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    index = json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}})
    refused("model.safetensors.index.json", index.encode(), "is JSON.* index .*join its shards first: .*save_file")
    refused("indented.json", json.dumps(json.loads(index), indent=2).encode(), "join its shards first")
    refused("model.gguf", b"GGUF" + bytes(100), "GGUF file: .*gguf_file")
    refused("old.bin", b"\x80\x02}q\x00.", r"a pickle, .*weights_only=True.*compress\.save")
    refused("empty.safetensors", b"", "is empty: it was not written to its end")
    refused("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull")
    refused("text.safetensors", b"what is this?", "is no safetensors file")
    refused("zeros.safetensors", bytes(1000), "is no safetensors file")
    torch.save(model.state_dict(), tmp_path / "new.bin")
    with pytest.raises(ValueError, match=r"new\.bin' .* a zip file, .*weights_only=True"):
        load(model, tmp_path / "new.bin")
    assert state_of(model) == before


def test_paths_that_are_no_file_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = small_model()
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        load(model, tmp_path / "none")
    with pytest.raises(IsADirectoryError, match=f"is a folder that has none.*{tmp_path}"):
        load(model, tmp_path)
    save(model, tmp_path / "one.safetensors")
    with pytest.raises(IsADirectoryError, match=r"give its file 'one\.safetensors'"):
        load(model, str(tmp_path))
    save(model, tmp_path / "two.safetensors")
    with pytest.raises(IsADirectoryError, match="this folder has 2 of safetensors: join its shards first"):
        load(model, tmp_path)
    paths = sorted(tmp_path.iterdir())
    for several in (paths, tuple(paths), {path: path for path in paths}):
        with pytest.raises(ValueError, match="is given 2: join its shards first"):
            load(model, several)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    save(nn.Sequential(*model[:2]), shard)
    with pytest.raises(ValueError, match=r"one shard of several: join its shards first"):
        load(model, shard)
    for odd in (None, 3, b"bytes", torch.ones(2)):
        with pytest.raises(TypeError, match="is the path of a safetensors file, not"):
            load(model, odd)
    with pytest.raises(TypeError, match=r"model is a torch.nn.Module, not"):
        load(shard, model)
    with pytest.raises(TypeError, match="prefix is"):
        load(model, shard, prefix=None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        load(model, tmp_path / "pipe")
    assert compress.LoadReport is LoadReport


class _Holder(nn.Module):
    """Its code reads the weight of a layer by another way than the layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        if how == "list":
            self.weights = [self.layer.weight]
        elif how == "attribute":
            self.seen = self.layer.weight.data
        elif how == "buffer":
            self.register_buffer("seen", self.layer.weight.data.t(), persistent=False)
        elif how == "closure":
            weight = self.layer.weight
            self.product = lambda x: x @ weight.t()


@pytest.mark.parametrize("how", ["list", "attribute", "buffer", "closure"])
def test_a_weight_that_is_read_elsewhere_too_is_not_left_behind(file: Path, how: str) -> None:
    save(_Holder("not at all"), file)
    model = _Holder(how)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"'layer' shares the memory of its weight with .*skip=\['layer'\]"):
        load(model, file)
    assert type(model.layer) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    load(model, file, skip=["layer"])  # filled in place, so all see it
    assert not torch.equal(model.layer.weight, before["layer.weight"])
