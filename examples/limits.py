"""A limit for each request: the one that asks too much fails alone, and the service lives on."""

import torch

import mempool

mempool.enable("cpu", limit="75%")
model = mempool.MemoryPool("model", limit="256MiB")


def serve(name: str, batch: int) -> str:
    """Answers one request within 16 MiB of memory of its own, and within what the model may use in all."""
    request = mempool.MemoryPool(name, limit="16MiB", parent=model)
    try:
        with mempool.use_pool(request):
            x = torch.randn(batch, 1024)
            y = (x @ x.T).softmax(dim=-1)
            return f"{name}: {tuple(y.shape)}, peak {request.peak_bytes() / 2**20:.1f} MiB"
    except mempool.OutOfMemoryError as error:
        info = mempool.oom_info(error)
        assert info is not None
        return f"{name}: refused {info['requested'] / 2**20:.0f} MiB, {info['allocated'] / 2**20:.0f} MiB were in use"
    finally:
        request.close()


for name, batch in [("small", 128), ("huge", 4096), ("small again", 256)]:
    print(serve(name, batch))
print(f"after all: {model.used_bytes()} bytes in use by the model")
