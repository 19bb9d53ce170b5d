"""`load` restores what `save` writes; other models are refused before any file is written; no good file is lost."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_states import skeleton
from small_models import linears, loaded, small_model, token_batches
from torch import nn

from mempool.compress import convert, load, prune_, save
from mempool.nn import Int8Linear

safetensors = pytest.importorskip("safetensors.torch")


def _head_on_embedding(tie: Callable[[nn.ModuleDict], None] = lambda _: None) -> nn.ModuleDict:
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    tie(model)
    return model


def _by_parameter(model: nn.ModuleDict) -> None:
    model["head"].weight = model["embedding"].weight


def _by_storage(model: nn.ModuleDict) -> None:
    model["head"].weight.data = model["embedding"].weight.data


@pytest.mark.parametrize("tie", [_by_parameter, _by_storage])
@pytest.mark.parametrize("weights", [None, "int8"])
def test_what_is_tied_is_written_once_and_comes_back_tied(
    file: Path, tie: Callable[[nn.ModuleDict], None], weights: str | None
) -> None:
    model = _head_on_embedding(tie)
    save(model, file)
    assert list(safetensors.load_file(file)) == ["embedding.weight"]
    for other in (_head_on_embedding(tie), skeleton(lambda: _head_on_embedding(tie))):
        load(other, file, weights=weights)
        assert torch.equal(other["head"].weight, model["embedding"].weight)
        assert other["head"].weight.data_ptr() == other["embedding"].weight.data_ptr()
        assert (other["head"].weight is other["embedding"].weight) == (tie is _by_parameter)


def test_what_was_tied_fills_a_model_that_ties_nothing(file: Path) -> None:
    model = _head_on_embedding(_by_storage)
    save(model, file)
    other = _head_on_embedding()
    report = load(other, file, weights=None)
    assert (report.kept, report.unused) == ((), ())
    assert torch.equal(other["head"].weight, model["embedding"].weight)
    assert other["head"].weight.data_ptr() != other["embedding"].weight.data_ptr()


def test_shared_packed_layers_come_back_in_models_that_share_them_or_not(file: Path) -> None:
    shared = Int8Linear.from_linear(nn.Linear(8, 8))
    save(nn.Sequential(shared, nn.ReLU(), shared), file)
    layer = nn.Linear(8, 8)
    sharing = loaded(nn.Sequential(layer, nn.ReLU(), layer), file)
    assert sharing[0] is sharing[2]
    apart = loaded(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), file)
    for layer in (sharing[2], apart[0], apart[2]):
        assert torch.equal(layer.dequantize(), shared.dequantize())


def _sliced(cut: Callable[[torch.Tensor], list[torch.Tensor]]) -> nn.Module:
    model = nn.Module()
    model.whole = torch.randn(6, 8)  # keeps what is between the slices alive
    for index, part in enumerate(cut(model.whole)):
        model.register_parameter(f"p{index}", nn.Parameter(part))
    return model


@pytest.mark.parametrize(
    "cut",
    [
        lambda whole: [whole[:2], whole[2:]],
        lambda whole: [whole[:, :3], whole[:, 3:]],
        lambda whole: [whole[:, ::2], whole[:, 1::2]],
        lambda whole: [whole[1:3].t(), whole[3:]],
        lambda whole: [whole[:2], whole[2:4].view(torch.float64), whole[4:].view(torch.int16)],
    ],
)
def test_slices_that_have_nothing_in_common_come_back(file: Path, cut: Callable[..., list[torch.Tensor]]) -> None:
    build = lambda: _sliced(lambda whole: [p if p.is_floating_point() else p.float() for p in cut(whole)])  # noqa: E731
    model = build()
    save(model, file)
    for other in (build(), skeleton(build)):
        load(other, file)
        for name, parameter in model.named_parameters():
            assert torch.equal(other.get_parameter(name), parameter)


@pytest.mark.parametrize(
    "cut",
    [
        lambda whole: [whole, whole[:2]],
        lambda whole: [whole[:3], whole[2:]],
        lambda whole: [whole[:, :4], whole[:, 3:]],
        lambda whole: [whole[:6, :6], whole[:6, :6].t()],
        lambda whole: [whole, whole.view(torch.float64)],
        lambda whole: [whole, whole.flatten()],
    ],
)
def test_slices_that_overlap_are_refused_by_name(file: Path, cut: Callable[..., list[torch.Tensor]]) -> None:
    file.write_bytes(b"as it was")
    with pytest.raises(ValueError, match=r"'p0' and 'p1' overlap in memory.*clone"):
        save(_sliced(cut), file)
    assert file.read_bytes() == b"as it was"
    assert os.listdir(file.parent) == [file.name]


def test_a_model_whose_tensors_overlap_is_not_filled(file: Path) -> None:
    apart = _sliced(lambda whole: [whole[:3], whole[3:].clone()])
    save(apart, file)
    model = _sliced(lambda whole: [whole[:3], whole[2:5]])
    before = model.whole.clone()
    with pytest.raises(ValueError, match="'p0' and 'p1' of the model overlap"):
        load(model, file)
    assert torch.equal(model.whole, before)


class _WithState(nn.Linear):
    state: object = {"n": 3}

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def _with_buffer(value: torch.Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("extra", value)
    return model


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(_WithState(2, 2)), r"'0\._extra_state' is no tensor but of type dict.*torch\.save"),
        (lambda: _with_buffer(torch.eye(3).to_sparse()), r"'0\.extra' is torch\.sparse_coo.*to_dense"),
        (lambda: _with_buffer(torch.eye(4).to_sparse_csr()), r"'0\.extra' is torch\.sparse_csr.*to_dense"),
        (
            lambda: _with_buffer(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
            r"'0\.extra' is quantized by torch: dequantize",
        ),
        (lambda: _with_buffer(torch.ones(3, dtype=torch.complex128)), r"'0\.extra' is torch\.complex128.*convert it"),
        (lambda: _with_buffer(torch.ones(3, device="meta")), r"'0\.extra' is on the meta device.*load it first"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"'0\.weight' has no shape yet: run the model"),
    ],
)
def test_what_would_not_come_back_is_refused_by_name(file: Path, build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save(build(), file)
    assert os.listdir(file.parent) == []


def test_an_extra_state_of_none_or_a_tensor_that_is_none_is_nothing_to_save(file: Path) -> None:
    layer = _WithState(2, 2, bias=False)
    layer.state = None
    save(nn.Sequential(layer), file)
    assert list(safetensors.load_file(file)) == ["0.weight"]


def test_all_types_and_shapes_come_back(file: Path) -> None:
    def build(fill: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
        model = nn.Module()
        values = {
            "number": torch.tensor(3.5),
            "none": torch.empty(0, 7),
            "also_none": torch.empty(7, 0),
            "count": torch.tensor([1 << 40, -1]),
            "mask": torch.tensor([True, False, True]),
            "twice": torch.tensor([1 / 3], dtype=torch.float64),
            "short": torch.tensor([1 / 3], dtype=torch.float16),
            "brain": torch.tensor([1 / 3], dtype=torch.bfloat16),
            "eighth": torch.tensor([1.5, 2.0]).to(torch.float8_e4m3fn),
            "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
            "nibbles": torch.tensor([[1, 255]], dtype=torch.uint8),
            "ends": torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0]),
            "columns": torch.randn(3, 4).t(),
        }
        for name, value in values.items():
            model.register_buffer(name, fill(value))
        return model

    model = build(lambda value: value)
    save(model, file)
    for other in (build(torch.zeros_like), build(lambda value: value.to("meta"))):
        report = load(other, file)
        assert (report.kept, report.unused) == ((), ())
        for name, buffer in model.named_buffers():
            new = other.get_buffer(name)
            assert (new.dtype, new.shape, new.stride()) == (buffer.dtype, buffer.shape, buffer.stride())
            assert new.contiguous().view(-1).view(torch.uint8).equal(buffer.contiguous().view(-1).view(torch.uint8))


def test_views_that_conjugate_or_negate_are_written_as_they_read(file: Path) -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    model = _with_buffer(value.conj())
    model[0].register_buffer("negated", value.clone().conj().imag)
    assert model[0].extra.is_conj()
    assert model[0].negated.is_neg()
    save(model, file)
    stored = safetensors.load_file(file)
    assert stored["0.extra"].tolist() == [1 - 2j, 3 + 4j]
    assert stored["0.negated"].tolist() == [-2, 4]


def test_masks_of_pruning_come_back_and_can_be_learned_with(file: Path) -> None:
    model = prune_(small_model(), 0.5, keep_masks=True)
    save(model, file)
    other = prune_(small_model(), 0.9, keep_masks=True)
    report = load(other, file, weights=None)
    assert (report.kept, report.unused) == ((), ())
    for new, old in zip(linears(other), linears(model), strict=True):
        assert torch.equal(new.weight_orig, old.weight_orig)
        assert torch.equal(new.weight_mask, old.weight_mask)
    input = token_batches()[0]
    assert torch.equal(other(input), model(input))


@pytest.mark.parametrize("build", [small_model, lambda: prune_(small_model(), 0.9, keep_masks=True)])
def test_masked_weights_fill_plain_layers_and_are_packed(file: Path, build: Callable[[], nn.Module]) -> None:
    model = prune_(small_model(), 0.5, keep_masks=True)
    save(model, file)
    plain = loaded(small_model(), file, weights=None)
    for new, old in zip(linears(plain), linears(model), strict=True):
        assert torch.equal(new.weight, old.weight_orig * old.weight_mask)
    packed = loaded(build(), file)
    convert(model)
    for index in (1, 4):
        assert packed[index].pattern == "unstructured"
        assert torch.equal(packed[index].dequantize(), model[index].dequantize())


# The file


def _leave_no_room(file: Path, model: nn.Module) -> None:
    """Files of this process end at 4 KiB: the write fails like that of a full disk."""
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        save(model, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_good_file_stays_where_there_is_no_room_for_the_next(file: Path) -> None:
    save(nn.Sequential(nn.Linear(2, 2)), file)
    before = file.read_bytes()
    with pytest.raises(OSError, match="File too large") as caught:
        _leave_no_room(file, small_model())
    assert caught.value.filename == str(file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_good_file_stays_when_saving_is_interrupted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(nn.Sequential(nn.Linear(2, 2)), file)
    before = file.read_bytes()

    def interrupt(_tensors: object, new: str, _metadata: object) -> None:
        Path(new).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(small_model(), file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_file_is_on_the_disk_before_it_takes_the_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def replace(new: Path, target: Path) -> None:
        calls.append(("replace", str(new)))
        rename(new, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("os.replace", replace)
    save(small_model(), file)
    new = calls[1][1]
    assert calls == [("fsync", new), ("replace", new), ("fsync", str(file.parent))]
    assert Path(new).parent == file.parent
    assert Path(new) != file


def test_permissions_and_links_stay(file: Path) -> None:
    real = file.with_name("real.safetensors")
    file.symlink_to(real)
    mask = os.umask(0o027)
    try:
        save(small_model(), file)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    real.chmod(0o604)
    save(small_model(), file)
    assert file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o604


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    model = small_model()
    with pytest.raises(FileNotFoundError, match="no_folder"):
        save(model, tmp_path / "no_folder" / "model.safetensors")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        save(model, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"no regular file.*pipe"):
        save(model, tmp_path / "pipe")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="below"):
        save(model, tmp_path / "file" / "below")
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]
