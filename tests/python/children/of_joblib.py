"""Two workers of joblib's loky."""

from __future__ import annotations

from joblib import Parallel, delayed
from work import work

if __name__ == "__main__":
    Parallel(n_jobs=2)(delayed(work)() for _ in range(2))
