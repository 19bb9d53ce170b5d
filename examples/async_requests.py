"""Coroutines that share one thread, each charged to its own pool."""

import asyncio

import torch

import mempool

mempool.enable("cpu")


async def handle(size: int) -> torch.Tensor:
    x = torch.randn(size, size)
    await asyncio.sleep(0.01)  # other requests run here; their blocks are not charged to this one
    return x @ x


async def main() -> None:
    pools = [mempool.MemoryPool(f"request {i}", limit="64MiB") for i in range(3)]
    tasks = [mempool.in_pool(pool, handle(256 * (i + 1))) for i, pool in enumerate(pools)]
    results = await asyncio.gather(*tasks)
    for pool, result in zip(pools, results, strict=True):
        print(f"{pool.name}: used {pool.used_bytes():>9,} bytes for {tuple(result.shape)}, peak {pool.peak_bytes():,}")


asyncio.run(main())
