"""A deployment of Ray Serve, whose replicas bound each request, and are bound to the memory that Ray places them by.

serve run ray_serve_app:app
"""

import torch
from fastapi import FastAPI
from ray import serve

import mempool
from mempool.serving import PoolMiddleware

api = FastAPI()
api.add_middleware(PoolMiddleware, limit="64MiB", app_limit="512MiB", name="requests")


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1, "memory": 1 << 30})  # what Ray places it by
@serve.ingress(api)
class Encoder:
    def __init__(self):
        mempool.enable("cpu", limit="1GiB")  # and what it is held to
        with mempool.use_pool(mempool.MemoryPool("encoder", metrics_label="encoder")):
            self.model = torch.nn.Linear(256, 256).eval()

    @api.get("/embed/{rows}")
    def embed(self, rows: int) -> list[float]:
        with torch.inference_mode():
            return self.model(torch.ones(rows, 256)).mean(0)[:2].tolist()


app = Encoder.bind()
