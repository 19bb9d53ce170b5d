"""Training on all processors of a machine, under one limit for all ranks.

torchrun --nproc-per-node 2 torchrun_train.py
"""

import os

import torch
import torch.distributed as dist

import mempool

os.environ.setdefault("MEMPOOL_LEDGER", f"train-{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['MASTER_PORT']}")
device = "cuda" if torch.cuda.is_available() else "cpu"
mempool.enable(device, limit="80%", shared=True)  # of the machine, or of each GPU; for all ranks together
dist.init_process_group("nccl" if device == "cuda" else "gloo")
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(512, 512).to(device))
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(5):
    loss = model(torch.randn(256, 512, device=device)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

dist.barrier()
if dist.get_rank() == 0:
    for row in mempool.shared_report(device).processes:
        print(f"{row.name}: at most {row.peak_held / 2**20:.0f} MiB")
dist.barrier()
dist.destroy_process_group()
