"""``mempool compress``: a sentence-embedding model as float32, int8 and sparse int8, each in a pool of its own."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import mempool
from mempool import _core, compress
from mempool.demo import corpus
from mempool.demo.errors import DemoError
from mempool.demo.model import Embedder

CALIBRATION, HELD_OUT, BATCH = 400, 100, 20  # passages
LEARNING = 2000  # passages, where the model is distilled: a model learns most from what it has not seen yet
SMALL, LARGE, WORDS = 1, 16, 32  # passages in the batches that are timed, and words in each
ROUNDS = 9
HEADROOM = 1.05  # the limit, in peaks of the int8 model


Progress: TypeAlias = Callable[[float, str], None]  # how much is done, 0 to 1, and what comes next


@dataclass(frozen=True)
class Settings:
    """What is compressed, and how."""

    folder: Path  # config.json, model.safetensors and the tokenizer's files
    text: Path | None = None  # a passage in each line; None: what every Python installation carries
    sparsity: float = 0.5
    method: str = "wanda"
    pattern: str = "unstructured"
    epochs: int = 0  # of distillation after pruning
    out: Path | None = None  # where the sparse model is written
    target: str = "cpu"  # what it is written for


@dataclass
class Variant:
    """One form of the model, with what was measured of it."""

    name: str
    pool: mempool.MemoryPool
    model: nn.Module
    embedder: Embedder
    report: compress.Report
    seconds: float  # to load and convert
    peak_bytes: int = 0  # of the weights and one large batch
    small_ms: float = 0.0
    large_ms: float = 0.0
    cosine_mean: float = 1.0
    cosine_min: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Sizes are bytes."""
        names = ("name", "seconds", "peak_bytes", "small_ms", "large_ms", "cosine_mean", "cosine_min")
        return {**{name: getattr(self, name) for name in names}, "report": asdict(self.report)}


@dataclass(frozen=True)
class LimitTrial:
    """Which form of the model runs in a pool in which only int8 fits."""

    limit_bytes: int
    float32_fits: bool  # by its weights alone: then nothing was tried
    outcomes: dict[str, str] = field(default_factory=dict)  # by form: what happened
    held: bool = False  # float32 was refused, int8 ran


@dataclass(frozen=True)
class Outcome:
    """Everything that was measured."""

    settings: Settings
    variants: list[Variant]
    held_out: int  # passages
    trial: LimitTrial

    @property
    def held(self) -> bool:
        return self.trial.held

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Sizes are bytes."""
        return {
            "machine": {"threads": torch.get_num_threads(), "kernels": _core.kernel_isa(), "torch": torch.__version__},
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()},
            "held_out_passages": self.held_out,
            "forms": [variant.as_dict() for variant in self.variants],
            "limit": asdict(self.trial),
        }


def run(settings: Settings, progress: Progress) -> Outcome:
    """Compresses and measures; writes the sparse model where the settings say so."""
    if settings.out is not None and not settings.out.absolute().parent.is_dir():
        raise DemoError(f"there is no folder '{settings.out.absolute().parent}' for the sparse model.")
    calibration, held_out = _texts(settings.text, CALIBRATION if settings.epochs == 0 else LEARNING)
    mempool.enable("cpu")
    variants = _variants(settings, calibration, progress)
    _measure(variants, held_out, progress)
    if settings.out is not None:
        progress(0.85, "saving")
        with mempool.use_pool(variants[-1].pool):
            compress.save(compress.convert(variants[-1].model, target=settings.target), settings.out)
    progress(0.9, "under a limit")
    return Outcome(settings, variants, len(held_out), _try_limit(settings, variants))


def show(outcome: Outcome) -> None:
    """Prints it for people."""
    console = Console()
    variants, trial = outcome.variants, outcome.trial
    console.print(variants[-1].report.table(grouped=True))
    console.print(_table(variants, outcome.held_out))
    console.print(
        f"machine: {torch.get_num_threads()} threads, kernels {_core.kernel_isa()}, torch {torch.__version__}"
    )
    if outcome.settings.out is not None:
        console.print(f"{variants[-1].name}: {outcome.settings.out}", soft_wrap=True, markup=False)
    text = f"in a pool with a limit of {_core.format_bytes(trial.limit_bytes)} "
    if trial.float32_fits:
        console.print(f"{text}float32 would fit, too: so little of this model is in its linear layers.")
    for what in trial.outcomes.values():
        console.print(text + what, soft_wrap=True, markup=False)


def _texts(path: Path | None, most: int) -> tuple[list[str], list[str]]:
    """Passages to calibrate and learn with, `most` of them, and others that are held out."""
    if path is None:
        return corpus.passages(most, HELD_OUT)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(f"cannot read '{path}': {error}.") from error
    if len(lines) < 4:
        raise DemoError(f"'{path}' has {len(lines)} lines of text: a quarter is held out, so 4 at least are needed.")
    cut = max(1, min(HELD_OUT, len(lines) // 4))
    return lines[cut:][:most], lines[:cut]


def skeleton(folder: Path) -> nn.Module:
    """The model that a folder describes, its parameters on the meta device."""
    from transformers import AutoConfig, AutoModel

    with compress.meta_parameters():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        from_config: Any = AutoModel.from_config
        model: nn.Module = from_config(config)
    return model.eval()


def _loaded(folder: Path, weights: str | None = "int8", **pruning: Any) -> nn.Module:
    model = skeleton(folder)
    compress.load(model, folder / "model.safetensors", weights, **pruning)
    return model


def _variants(settings: Settings, calibration: list[str], progress: Progress) -> list[Variant]:
    weights = settings.folder / "model.safetensors"
    if not weights.is_file():
        raise DemoError(f"there is no '{weights}'.")
    progress(0.0, "float32")
    float32 = _variant("float32", settings.folder, lambda: _loaded(settings.folder, None))
    # Of like lengths together: less padding, which would count as text.
    calibration = sorted(calibration, key=len)
    batches = [float32.embedder.batch(calibration[i : i + BATCH]) for i in range(0, len(calibration), BATCH)]
    how: dict[str, Any] = {
        "sparsity": settings.sparsity,
        "method": settings.method,
        "pattern": settings.pattern,
        "calibration": batches[:: max(1, len(batches) * BATCH // CALIBRATION)],
    }

    def sparse() -> nn.Module:
        if settings.epochs == 0:
            return _loaded(settings.folder, **how)
        model = compress.prune_(copy.deepcopy(float32.model), **how, keep_masks=True)
        return compress.convert(compress.distill_(model, float32.model, batches, settings.epochs))

    progress(0.1, "int8")
    dense = _variant("int8", settings.folder, lambda: _loaded(settings.folder))
    name = f"int8, {settings.sparsity:.0%} {settings.method}"
    progress(0.2, name)
    return [
        float32,
        dense,
        _variant(name if settings.epochs == 0 else f"{name}, distilled", settings.folder, sparse),
    ]


def _variant(name: str, folder: Path, load: Any) -> Variant:
    pool = mempool.MemoryPool(name, device="cpu")
    start = time.perf_counter()
    with mempool.use_pool(pool):
        model = load()
    return Variant(name, pool, model, Embedder(folder, model), compress.report(model), time.perf_counter() - start)


def _measure(variants: list[Variant], held_out: list[str], progress: Progress) -> None:
    words = " ".join(held_out).split()
    large = [" ".join(words[i * WORDS : (i + 1) * WORDS]) or "text" for i in range(LARGE)]
    small = large[:SMALL]
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(ROUNDS):
        progress(0.5 + 0.35 * turn / ROUNDS, "measuring")
        for variant in variants:  # in turn: the machine's speed changes
            for passages in (small, large):
                variant.embedder.embed(passages[:1])
                start = time.perf_counter()
                variant.embedder.embed(passages)
                times.setdefault((variant.name, len(passages)), []).append(time.perf_counter() - start)
    expected = torch.from_numpy(_embeddings(variants[0], held_out))
    for variant in variants:
        variant.small_ms = 1e3 * statistics.median(times[variant.name, SMALL])
        variant.large_ms = 1e3 * statistics.median(times[variant.name, LARGE])
        variant.pool.reset_peak()
        with mempool.use_pool(variant.pool):
            variant.embedder.embed(large)
        variant.peak_bytes = variant.pool.peak_bytes()
        cosine = (torch.from_numpy(_embeddings(variant, held_out)) * expected).sum(dim=1)
        variant.cosine_mean, variant.cosine_min = float(cosine.mean()), float(cosine.min())


def _embeddings(variant: Variant, passages: list[str]) -> Any:
    import numpy as np

    return np.concatenate([variant.embedder.embed(passages[i : i + BATCH]) for i in range(0, len(passages), BATCH)])


def _table(variants: list[Variant], held_out: int) -> Table:
    table = Table(title=f"the model in three forms, cosines over {held_out} held-out passages", title_justify="left")
    size = _core.format_bytes
    table.add_column("")
    for variant in variants:
        table.add_column(variant.name, justify="right")
    rows: list[tuple[str, Callable[[Variant], str]]] = [
        ("linear layers", lambda v: size(v.report.linear_bytes)),
        ("embeddings", lambda v: size(v.report.embedding_bytes)),
        ("all weights", lambda v: size(v.report.total_bytes)),
        (f"peak, {LARGE} passages", lambda v: size(v.peak_bytes)),
        (f"{SMALL} passage", lambda v: f"{v.small_ms:.1f} ms"),
        (f"{LARGE} passages", lambda v: f"{v.large_ms:.1f} ms"),
        ("cosine to float32", lambda v: f"{v.cosine_mean:.4f}"),
        ("least cosine", lambda v: f"{v.cosine_min:.4f}"),
        ("made in", lambda v: f"{v.seconds:.1f} s"),
    ]
    for title, text in rows:
        table.add_row(title, *(text(variant) for variant in variants))
    return table


def _try_limit(settings: Settings, variants: list[Variant]) -> LimitTrial:
    """The float32 model and the int8 model in a pool in which only the second fits."""
    limit = int(HEADROOM * _peak_of_int8(settings))
    if limit >= variants[0].report.total_bytes:
        return LimitTrial(limit, True)
    held = True
    outcomes = {}
    for name in ("float32", "int8"):
        pool = mempool.MemoryPool(f"limited, {name}", device="cpu", limit=limit)
        try:
            with mempool.use_pool(pool):
                _serve_one(settings, None if name == "float32" else name)
            outcomes[name], fits = f"{name} loads and runs, peak {_core.format_bytes(pool.peak_bytes())}", True
        except mempool.OutOfMemoryError as error:
            outcomes[name], fits = f"{name} fails: {str(error).splitlines()[0]}", False
        held = held and fits == (name == "int8")
    return LimitTrial(limit, False, outcomes, held)


def _serve_one(settings: Settings, form: str | None) -> None:
    model = _loaded(settings.folder, form)
    Embedder(settings.folder, model).embed(["a passage of text"])


def _peak_of_int8(settings: Settings) -> int:
    pool = mempool.MemoryPool("probe", device="cpu")
    with mempool.use_pool(pool):
        _serve_one(settings, "int8")
    return pool.peak_bytes()
