import torch
from mempool import _core, _torch_cpu
