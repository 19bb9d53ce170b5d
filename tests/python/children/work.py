"""What a child does: takes memory, and says in the file $OUT under which limit. As a program it does so at once."""

from __future__ import annotations

import json
import os
from pathlib import Path


def work(*_: object) -> int:
    import torch

    import mempool

    torch.ones(16 << 20)  # 64 MiB
    is_shared = "MEMPOOL_LEDGER" in os.environ
    limit = mempool.get_limit("cpu", shared=is_shared) if mempool.is_enabled("cpu") else None
    with Path(os.environ["OUT"]).open("a") as out:
        out.write(json.dumps({"pid": os.getpid(), "limit": limit}) + "\n")
    return 0


if __name__ == "__main__":
    work()
