"""The workloads of the model benchmark: programs of users, deterministic, reduced to a step that can be repeated.

Each is a frozen dataclass of sizes with `build() -> state` and `step(state) -> tensor`. Seeds are fixed, so on one
thread two processes that take the same steps must agree in every bit, whatever allocator they use: `digest` makes
that one comparison of text. `workload(name, small=True)` gives the same steps in a size for tests (under a second).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models.resnet import resnet
from benchmarks.models.transformer import Transformer

SEED = 20240607
LENGTHS = (64, 211, 128, 37, 256, 96, 173, 150)  # tokens of each step, a cycle


class Workload(Protocol):
    """A model and its step. `steps` and `warmup` are the numbers of steps that a benchmark takes by default."""

    name: ClassVar[str]
    steps: ClassVar[int]
    warmup: ClassVar[int]

    def build(self) -> Any:
        """Makes the model and its inputs, from the fixed seed."""

    def step(self, state: Any) -> Tensor:
        """One step; its result depends on the seed and on how many steps came before, on nothing else."""

    def outputs(self, state: Any, result: Tensor) -> Iterable[Tensor]:
        """What must be equal in every bit after a step: the result, and for training all that it changed."""


@dataclass(frozen=True)
class Elementwise:
    """A chain of ten elementwise operators, each giving a new tensor of `elements` float32: bound by allocation."""

    elements: int = 16 * 2**20  # 64 MiB a tensor: twice the size above which glibc always maps and unmaps

    name: ClassVar[str] = "elementwise_64mb"
    steps: ClassVar[int] = 6
    warmup: ClassVar[int] = 2

    def build(self) -> Tensor:
        return torch.rand(self.elements, generator=torch.Generator().manual_seed(SEED))

    def step(self, state: Tensor) -> Tensor:
        x = state + 1.0
        x = x * 1.5
        x = x - state
        x = torch.relu(x)
        x = x.neg()
        x = x.abs()
        x = torch.maximum(x, state)
        x = x.clamp(0.25, 1.75)
        x = x.square()
        return x + state

    def floor(self, state: Tensor) -> Callable[[], Tensor]:
        """The same step into two tensors made beforehand: the time that is left once allocation costs nothing."""
        a, b = torch.empty_like(state), torch.empty_like(state)

        def step() -> Tensor:
            torch.add(state, 1.0, out=a)
            torch.mul(a, 1.5, out=b)
            torch.sub(b, state, out=a)
            torch.clamp_min(a, 0.0, out=b)  # relu has no out=
            torch.neg(b, out=a)
            torch.abs(a, out=b)
            torch.maximum(b, state, out=a)
            torch.clamp(a, 0.25, 1.75, out=b)
            torch.square(b, out=a)
            return torch.add(a, state, out=b)

        return step

    def outputs(self, state: Tensor, result: Tensor) -> Iterable[Tensor]:
        return (result,)


@dataclass(frozen=True)
class Inference:
    """A model in eval mode without gradients, on one fixed input: the base of the inference workloads."""

    steps: ClassVar[int] = 3
    warmup: ClassVar[int] = 2

    def build(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(SEED)
        model = self.model().eval()
        return model, self.inputs()

    def model(self) -> nn.Module:
        raise NotImplementedError

    def inputs(self) -> Tensor:
        raise NotImplementedError

    def step(self, state: tuple[nn.Module, Tensor]) -> Tensor:
        model, inputs = state
        with torch.no_grad():
            result: Tensor = model(inputs)
        return result

    def outputs(self, state: tuple[nn.Module, Tensor], result: Tensor) -> Iterable[Tensor]:
        return (result,)


@dataclass(frozen=True)
class Resnet(Inference):
    """Images (batch, 3, side, side) through a bottleneck ResNet; the defaults are ResNet-50."""

    batch: int = 16
    side: int = 224  # pixels
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64

    name: ClassVar[str] = "resnet50_b16"

    def model(self) -> nn.Module:
        return resnet(self.blocks, self.width)

    def inputs(self) -> Tensor:
        return torch.randn(self.batch, 3, self.side, self.side)


@dataclass(frozen=True)
class BertEncoder(Inference):
    """Token ids (batch, tokens) through an encoder of BERT-base's width, half its depth."""

    batch: int = 8
    tokens: int = 128
    layers: int = 6
    width: int = 768
    heads: int = 12
    vocabulary: int = 30522

    name: ClassVar[str] = "bert_encoder"
    causal: ClassVar[bool] = False

    def model(self) -> nn.Module:
        return Transformer(self.layers, self.width, self.heads, self.vocabulary, self.tokens, causal=self.causal)

    def inputs(self) -> Tensor:
        return torch.randint(self.vocabulary, (self.batch, self.tokens))


@dataclass(frozen=True)
class VaryingEncoder(BertEncoder):
    """The encoder on batches whose length varies: a fixed cycle of lengths up to `tokens`, one a step."""

    tokens: int = 256
    lengths: tuple[int, ...] = LENGTHS

    name: ClassVar[str] = "encoder_varying"
    steps: ClassVar[int] = 8
    warmup: ClassVar[int] = 16

    def build(self) -> Any:
        model, ids = super().build()
        return model, [ids[:, :length].contiguous() for length in self.lengths], count()

    def step(self, state: Any) -> Tensor:
        model, batches, steps = state
        return super().step((model, batches[next(steps) % len(batches)]))


@dataclass(frozen=True)
class GptPrefill(BertEncoder):
    """A long prompt through a causal decoder, all positions at once: what serving does before it generates."""

    batch: int = 1
    tokens: int = 1024
    layers: int = 8

    name: ClassVar[str] = "gpt_prefill"
    causal: ClassVar[bool] = True


@dataclass
class TrainingState:
    """A model under training, its optimizer, and the one batch it is trained on (fixed, to make steps alike)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ids: Tensor  # (batch, tokens)
    targets: Tensor  # (batch, tokens): the ids one further


@dataclass(frozen=True)
class GptTrain:
    """A training step of a small GPT: forward, cross entropy, backward, AdamW. The result is the loss, shape ()."""

    batch: int = 8
    tokens: int = 128
    layers: int = 4
    width: int = 384
    heads: int = 6
    vocabulary: int = 8192

    name: ClassVar[str] = "gpt_train"
    steps: ClassVar[int] = 4
    warmup: ClassVar[int] = 2

    def build(self) -> TrainingState:
        torch.manual_seed(SEED)
        model = Transformer(self.layers, self.width, self.heads, self.vocabulary, self.tokens, causal=True)
        ids = torch.randint(self.vocabulary, (self.batch, self.tokens + 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        return TrainingState(model.train(), optimizer, ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def step(self, state: TrainingState) -> Tensor:
        state.optimizer.zero_grad()
        logits = state.model(state.ids)
        loss = F.cross_entropy(logits.flatten(0, 1), state.targets.flatten())
        loss.backward()
        state.optimizer.step()
        return loss.detach()

    def outputs(self, state: TrainingState, result: Tensor) -> Iterable[Tensor]:
        # A loss alone could agree by luck; the parameters hold everything that the steps so far have done.
        return (result, *(parameter.detach() for parameter in state.model.parameters()))


@dataclass(frozen=True)
class GptTrainVarying(GptTrain):
    """The training step on sequences whose length varies: a fixed cycle of lengths up to `tokens`, one a step."""

    tokens: int = 256
    lengths: tuple[int, ...] = LENGTHS

    name: ClassVar[str] = "gpt_train_varying"
    steps: ClassVar[int] = 8
    warmup: ClassVar[int] = 16

    def build(self) -> Any:
        return super().build(), count()

    def step(self, state: Any) -> Tensor:
        training, steps = state
        length = self.lengths[next(steps) % len(self.lengths)]
        shorter = replace(training, ids=training.ids[:, :length], targets=training.targets[:, :length])
        return super().step(shorter)

    def outputs(self, state: Any, result: Tensor) -> Iterable[Tensor]:
        return super().outputs(state[0], result)


_FULL: tuple[Workload, ...] = (
    Elementwise(),
    Resnet(),
    BertEncoder(),
    VaryingEncoder(),
    GptPrefill(),
    GptTrain(),
    GptTrainVarying(),
)
_SMALL: tuple[Workload, ...] = (
    Elementwise(elements=2**20),
    Resnet(batch=2, side=64, blocks=(1, 1, 1, 1), width=16),
    BertEncoder(batch=2, tokens=16, layers=2, width=64, heads=4, vocabulary=512),
    VaryingEncoder(batch=2, tokens=32, layers=2, width=64, heads=4, vocabulary=512, lengths=(9, 32, 17)),
    GptPrefill(batch=1, tokens=64, layers=2, width=64, heads=4, vocabulary=512),
    GptTrain(batch=2, tokens=16, layers=2, width=64, heads=4, vocabulary=512),
    GptTrainVarying(batch=2, tokens=32, layers=2, width=64, heads=4, vocabulary=512, lengths=(9, 32, 17)),
)
NAMES: tuple[str, ...] = tuple(each.name for each in _FULL)


def workloads(small: bool = False) -> tuple[Workload, ...]:
    """Every workload, in the size that is measured or in the size for tests."""
    return _SMALL if small else _FULL


def workload(name: str, small: bool = False) -> Workload:
    """The workload of that name; KeyError if there is none."""
    return {each.name: each for each in workloads(small)}[name]


def digest(tensors: Iterable[Tensor]) -> str:
    """sha256 of the dtypes, shapes and bytes of CPU tensors, in their order; equal only if they agree in every bit."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        # The buffer itself: a copy would count as the workload's memory. hashlib takes one dimension only.
        sha.update(tensor.contiguous().view(-1).numpy())
    return sha.hexdigest()
