"""An embedding service of FastAPI: each request bounded, all of them too, metrics, and snapshots of refusals.

MEMPOOL_CAPTURE_ON_OOM=captures uvicorn fastapi_app:app
curl localhost:8000/embed/100        curl localhost:8000/embed/100000    # 503        curl localhost:8000/metrics/
"""

from contextlib import asynccontextmanager

import prometheus_client
import torch
from fastapi import FastAPI

import mempool
from mempool.serving import PoolMiddleware

mempool.enable("cpu", limit="auto")
weights = mempool.MemoryPool("encoder", metrics_label="encoder")


@asynccontextmanager
async def lifespan(app: FastAPI):
    with mempool.use_pool(weights):  # where a model is loaded, it is charged
        app.state.model = torch.nn.Linear(256, 256).eval()
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(PoolMiddleware, limit="64MiB", app_limit="1GiB", name="requests")
prometheus_client.REGISTRY.register(mempool.observe.prometheus_collector())
app.mount("/metrics", prometheus_client.make_asgi_app())


@app.get("/embed/{rows}")
def embed(rows: int) -> list[float]:
    with torch.inference_mode():
        return app.state.model(torch.ones(rows, 256)).mean(0)[:2].tolist()
