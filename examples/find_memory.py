"""Where does the memory go? A table, and the line of code behind each live block."""

import collections
import tempfile
from pathlib import Path

import torch

import mempool

mempool.enable("cpu")
mempool.record_history(True)

model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))
activations = model(torch.randn(256, 512))

print(mempool.memory_summary(abbreviated=True))
snapshot = mempool.memory_snapshot()
by_line: collections.Counter[str] = collections.Counter()
for segment in snapshot["segments"]:
    for block in segment["blocks"]:
        if block["state"] == "active_allocated" and block["frames"]:
            mine = next((f for f in block["frames"] if f["filename"] == __file__), block["frames"][0])
            by_line[f"line {mine['line']}"] += block["size"]
for line, size in by_line.most_common(3):
    print(f"{line}: {size / 2**20:.1f} MiB live")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "snapshot.pickle"
    mempool.dump_snapshot(path)  # `mempool stats PATH`, or torch's own viewer
    print(f"{path.name}: {path.stat().st_size} bytes")
