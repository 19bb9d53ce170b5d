"""``distill_``: a pruned model learns again what the model it came from says."""

from __future__ import annotations

import numbers
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mempool.compress.layers import Batches, evaluating, require_batches, require_module, run_batch

Loss = Callable[[Any, Any, Any], Tensor]


def relative_error(output: Any, target: Any, batch: Any) -> Tensor:
    """The squared difference of the first tensors of two outputs, over the square of the second's.

    Where the batch has an ``attention_mask`` [B, T], tokens that it leaves out do not count.
    """
    got = _first(output)
    got = got.to(torch.promote_types(got.dtype, torch.float32))  # sums of squares go past what 16 bits hold
    wanted = _first(target).to(got)
    weight = wanted.new_ones(wanted.shape[:-1])
    if isinstance(batch, Mapping) and "attention_mask" in batch and batch["attention_mask"].shape == weight.shape:
        weight = batch["attention_mask"].to(wanted)
    weight = weight.unsqueeze(-1)
    return ((got - wanted).square() * weight).sum() / (wanted.square() * weight).sum().clamp(min=1e-12)


def _first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return _first(next(iter(output.values())) if isinstance(output, Mapping) else output[0])


def distill_(
    model: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    epochs: int = 4,
    learning_rate: float = 3e-4,
    loss: Loss = relative_error,
    seed: int = 0,
) -> nn.Module:
    """Trains ``model`` on the outputs of ``teacher`` for the same batches, in place; returns the model.

    For a model that was pruned with ``keep_masks=True``: its zeros stay zero. No labels are needed. Embeddings are not
    trained. Batches are those of ``prune_``; the same ones serve, and more of them serve better. Adam, with a rate that
    falls to nothing; both models are in evaluation mode meanwhile.

    Raises ValueError where there is no batch, no epoch, or no parameter to train.
    """
    require_module("model", model)
    require_module("teacher", teacher)
    if isinstance(epochs, bool) or not isinstance(epochs, numbers.Integral) or not callable(loss):
        raise TypeError(f"epochs is a whole number and loss a function, not {epochs!r} and {loss!r}.")
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, numbers.Real):
        raise TypeError(f"learning_rate is a number, not {learning_rate!r}.")
    if epochs < 1:
        raise ValueError(f"epochs is at least 1, not {epochs}.")
    data = list(require_batches("batches", batches))
    if not data:
        raise ValueError("there is no batch to learn from.")
    fixed = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    learned = [p for p in model.parameters() if p.requires_grad and id(p) not in fixed]
    if not learned:
        raise ValueError("the model has no parameter that is trained: do they all have requires_grad=False?")
    optimizer = torch.optim.Adam(learned, lr=learning_rate)
    steps = epochs * len(data)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
    order = random.Random(seed)
    with evaluating(model), evaluating(teacher):
        for _ in range(epochs):
            for batch in order.sample(data, len(data)):
                with torch.no_grad():
                    target = run_batch(teacher, batch)
                model.zero_grad()
                loss(run_batch(model, batch), target, batch).backward()
                optimizer.step()
                schedule.step()
    model.zero_grad()
    return model
