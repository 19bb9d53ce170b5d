"""Eleven kinds of children that Python and torch have themselves, one of each."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

from work import work


class Rows:
    """A dataset of one row, for whose worker this is the work."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> int:
        return work()


def main() -> None:
    import torch

    for way in ("fork", "spawn", "forkserver"):
        context: Any = multiprocessing.get_context(way)
        child = context.Process(target=work)
        child.start()
        child.join()
        with context.Pool(1) as pool:
            pool.apply(work)
        next(iter(torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context=way)))  # type: ignore
    torch.multiprocessing.spawn(work, nprocs=1)  # type: ignore[no-untyped-call]
    subprocess.run([sys.executable, str(Path(__file__).with_name("work.py"))], check=True)


if __name__ == "__main__":
    main()
