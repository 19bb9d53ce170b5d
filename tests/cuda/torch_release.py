"""The release of torch that the tests run with, for those that an older one lacks something for."""

from __future__ import annotations

import torch

TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
