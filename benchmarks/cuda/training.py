"""Training steps of a GPT of 124 million parameters."""

from __future__ import annotations

import functools
import random
import time
from typing import Any

from benchmarks.cuda.device import Device

LENGTHS = ("varying", "fixed")
_WARM_UP = 20  # steps


def train(device: Device, lengths: str, steps: int = 50, batch: int = 4) -> dict[str, Any]:
    """Each step has its own sequence length, or all have 1,024 tokens; bfloat16 autocast, AdamW."""
    torch = device.torch
    torch.manual_seed(0)
    width, heads, layers, words = 768, 12, 12, 50257
    layer = [
        torch.nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, dropout=0.0) for _ in range(layers)
    ]
    model = torch.nn.Sequential(torch.nn.Embedding(words, width), *layer, torch.nn.Linear(width, words)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    choose = random.Random(7)
    torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    calls: list[int] = []
    for _ in range(steps):
        length = 1024 if lengths == "fixed" else choose.randrange(128, 1025)
        tokens = torch.randint(0, words, (batch, length)).cuda()
        step = device.measured(functools.partial(_step, torch, model, optimizer, tokens))
        times.append(step.seconds * 1e3)
        calls.append(step.calls)
    time.sleep(0.1)  # for autograd's threads
    allocated = torch.cuda.max_memory_allocated()
    warm = min(_WARM_UP, steps // 2)
    out = {
        "first_step_ms": times[0],
        "warm_up_steps_ms": sum(times[1:warm]),
        "step_ms": sorted(times[warm:])[len(times[warm:]) // 2],
        "peak_allocated_mib": allocated / (1 << 20),
        "reserved_per_allocated": torch.cuda.max_memory_reserved() / allocated,
        device.calls_name: sum(calls),
        f"{device.calls_name}_in_last_10_steps": sum(calls[-10:]),
    }
    return out | ({"last_loss": float(step.result)} if device.runs_kernels else {})


def _step(torch: Any, model: Any, optimizer: Any, tokens: Any) -> Any:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(tokens)
    loss = torch.nn.functional.cross_entropy(output.float().flatten(0, 1), tokens.flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
