"""`load` verifies the checksums of `save`: a changed bit anywhere is found before the model changes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_states import header_of, modules_of, skeleton, state_of
from small_models import loaded, packed_model, small_model, token_batches
from torch import nn

from mempool.compress import convert, load, save

safetensors = pytest.importorskip("safetensors.torch")


def _flip(file: Path, position: int, bit: int = 0) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        value = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([value ^ 1 << bit]))


@pytest.mark.parametrize("build", [small_model, skeleton, packed_model])
def test_a_flipped_bit_anywhere_in_a_tensor_is_found(file: Path, build: Callable[[], nn.Module]) -> None:
    save(packed_model(), file)
    good = file.read_bytes()
    header, start = header_of(file)
    del header["__metadata__"]
    assert {"1.scales", "1.bias", "4.values", "4.offsets", "0.weight", "3.bias"} <= header.keys()
    model = build()
    before, modules = state_of(model), modules_of(model)
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        if first == end:
            continue
        for position, bit in ((first, 0), ((first + end) // 2, 3), (end - 1, 7)):
            file.write_bytes(good)
            _flip(file, start + position, bit)
            what = f"layer '{name[0]}'" if name[0] in "14" else f"tensor '{name}'"
            with pytest.raises(ValueError, match=f"{what} of .* is damaged: its bytes"):
                load(model, file)
    assert (state_of(model), modules_of(model)) == (before, modules)
    file.write_bytes(good)
    load(model, file)
    assert torch.equal(model(token_batches()[0]), packed_model()(token_batches()[0]))


def test_a_flipped_bit_of_the_header_is_found_or_changes_nothing(file: Path) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(3)
        layer = nn.Linear(8, 8)
        return nn.Sequential(convert(nn.Sequential(layer))[0], nn.LayerNorm(8))

    save(build(), file)
    good = file.read_bytes()
    input = torch.randn(3, 8)
    expected = build()(input)
    _, end = header_of(file)
    for position in range(end):
        file.write_bytes(good)
        _flip(file, position, position % 7)
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        before = state_of(model)
        try:
            load(model, file)
        except ValueError:
            assert state_of(model) == before
        else:
            assert torch.equal(model(input), expected)


def test_checksums_are_by_packed_layer_and_by_other_tensor(file: Path) -> None:
    save(packed_model(), file)
    metadata = header_of(file)[0]["__metadata__"]
    assert json.loads(metadata["mempool.checksums"]).keys() == {"0.weight", "1", "3.weight", "3.bias", "4"}
    assert metadata["format"] == "pt"


def test_two_layers_that_changed_their_places_are_found(file: Path) -> None:
    save(convert(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))), file)
    header, start = header_of(file)
    header["0.scales"], header["1.scales"] = header["1.scales"], header["0.scales"]
    data = file.read_bytes()[start:]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(ValueError, match=r"layer '0' of .* is damaged"):
        load(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), file)


def test_a_name_that_is_tied_to_nothing_is_damage(file: Path) -> None:
    for tied in ('{"1.weight": "0.weigh"}', '{"1.weight": 3}', "[]", "{"):
        safetensors.save_file({"0.weight": torch.ones(2, 2)}, file, {"mempool.tied": tied})
        with pytest.raises(ValueError, match="is damaged"):
            load(nn.Sequential(nn.Linear(2, 2, bias=False)), file)


def test_a_mask_of_another_shape_is_refused(file: Path) -> None:
    safetensors.save_file({"0.weight_orig": torch.ones(2, 2), "0.weight_mask": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"'0\.weight_orig' and its mask .* different shapes"):
        load(nn.Sequential(nn.Linear(2, 2, bias=False)), file)


def test_files_without_checksums_load(file: Path) -> None:
    model = packed_model()
    safetensors.save_file(model.state_dict(), file)  # as the first version wrote them
    assert torch.equal(loaded(skeleton(), file)(token_batches()[0]), model(token_batches()[0]))


def test_a_truncated_file_is_refused(file: Path) -> None:
    save(packed_model(), file)
    good = file.read_bytes()
    for size in (4, 8, 100, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        model = small_model()
        before = state_of(model)
        with pytest.raises(ValueError, match=str(file)):
            load(model, file)
        assert state_of(model) == before
