"""all-MiniLM-L6-v2 on a machine too small for it: float32 does not fit, int8 and sparse int8 do.

Needs the packages of mempool[demo]. `mempool compress` measures more of the same.
"""

import torch

import mempool
from mempool import compress
from mempool.demo import corpus
from mempool.demo.compress import skeleton  # AutoModel.from_config(...) with its parameters on the meta device
from mempool.demo.model import Embedder, find_weights

folder = find_weights()
weights = folder / "model.safetensors"
mempool.enable("cpu")

calibration, held_out = corpus.passages(60, 20)
expected = Embedder(folder).tensor(held_out)
embedder = Embedder(folder, torch.nn.Module())  # its tokenizer
batches = [embedder.batch(calibration[i : i + 10]) for i in range(0, len(calibration), 10)]

small = mempool.MemoryPool("small machine", device="cpu", limit="70MiB")
with mempool.use_pool(small):
    try:
        compress.load(skeleton(folder), weights, weights=None)
    except mempool.OutOfMemoryError:
        print("float32: refused")

for name, pruning in (("int8", {}), ("int8 at 50%", {"sparsity": 0.5, "method": "wanda"})):
    pool = mempool.MemoryPool(name, device="cpu")
    with mempool.use_pool(small if not pruning else pool):
        model = skeleton(folder)
        compress.load(model, weights, **pruning, calibration=batches)
    sizes = compress.report(model)
    cosine = (Embedder(folder, model).tensor(held_out) * expected).sum(dim=1).mean()
    linear, embeddings = sizes.linear_bytes / 2**20, sizes.embedding_bytes / 2**20
    print(f"{name}: linear layers {linear:.1f} MiB, embeddings {embeddings:.1f} MiB, cosine {cosine:.3f}")
    del model
