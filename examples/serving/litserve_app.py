"""A service of LitServe, whose worker bounds each batch.

python litserve_app.py
curl -X POST localhost:8000/predict -H "content-type: application/json" -d '{"rows": 100}'
"""

import sys

import litserve
import torch
from fastapi import HTTPException

import mempool
from mempool.serving import limit_memory


class Encoder(litserve.LitAPI):
    def setup(self, device):
        mempool.enable("cpu", limit="1GiB")  # in the worker, which LitServe spawns
        self.model = torch.nn.Linear(256, 256).eval()

    def decode_request(self, request):
        return int(request["rows"])

    def predict(self, rows):
        try:
            return self.bounded(rows)
        except mempool.OutOfMemoryError as error:
            raise HTTPException(503, mempool.oom_info(error)["reason"]) from error

    @limit_memory("64MiB", name="requests")
    def bounded(self, rows):
        with torch.inference_mode():
            return self.model(torch.ones(rows, 256)).mean(0)[:2].tolist()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    litserve.LitServer(Encoder(), accelerator="cpu").run(port=port, host="127.0.0.1", generate_client_file=False)
