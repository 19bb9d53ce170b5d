"""A service of BentoML, with the middleware around its ASGI app.

bentoml serve bentoml_service:Encoder
curl -X POST localhost:3000/embed -H "content-type: application/json" -d '{"rows": 100}'
"""

import bentoml
import torch

import mempool
from mempool.serving import PoolMiddleware


@bentoml.service(workers=1)
class Encoder:
    def __init__(self) -> None:
        mempool.enable("cpu", limit="1GiB")
        with mempool.use_pool(mempool.MemoryPool("encoder", metrics_label="encoder")):
            self.model = torch.nn.Linear(256, 256).eval()

    @bentoml.api
    def embed(self, rows: int) -> list[float]:
        with torch.inference_mode():
            return self.model(torch.ones(rows, 256)).mean(0)[:2].tolist()


Encoder.add_asgi_middleware(PoolMiddleware, limit="64MiB", app_limit="512MiB", name="requests")
