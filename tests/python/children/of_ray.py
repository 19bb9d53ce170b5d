"""Two tasks of Ray at once, each in a process."""

from __future__ import annotations

import ray
from work import work

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    task = ray.remote(work)
    ray.get([task.remote() for _ in range(2)])
    ray.shutdown()
