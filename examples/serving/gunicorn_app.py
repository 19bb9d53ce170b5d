"""A WSGI service of several forked workers: one copy of the weights, one limit for all, metrics of all at any of them.

gunicorn gunicorn_app:app --preload --workers 4
"""

import prometheus_client
import torch

import mempool
from mempool.serving import WsgiPoolMiddleware

torch.set_num_threads(1)  # before the fork: OpenMP's threads do not survive it
mempool.enable("cpu", limit="75%", shared=True)
model = torch.nn.Linear(256, 256).eval()  # --preload: it is loaded once, and the workers share its pages
prometheus_client.REGISTRY.register(mempool.observe.prometheus_collector())
metrics = prometheus_client.make_wsgi_app()


def embed(environ, start_response):
    rows = int(environ["PATH_INFO"].rsplit("/", 1)[1])
    with torch.inference_mode():
        answer = str(model(torch.ones(rows, 256)).mean(0)[:2].tolist())
    start_response("200 OK", [("content-type", "application/json")])
    return [answer.encode()]


limited = WsgiPoolMiddleware(embed, limit="64MiB", app_limit="1GiB", name="requests")


def app(environ, start_response):
    return (metrics if environ["PATH_INFO"] == "/metrics" else limited)(environ, start_response)
