"""What the routes for operators say of themselves: health, metrics, workers, queues."""

from __future__ import annotations

from typing import Final

from gateway.docs.words import ANYONE, KEY, OPENAI_ERROR, PLAIN, PROBLEM, answer, linked, path, ref, refusals, route

_TEXT: Final = {"type": "string"}
LIVEZ: Final = route("Operations", "Alive", {200: answer("Yes.", _TEXT, PLAIN)}, operationId="alive", security=ANYONE)
READYZ: Final = route(
    "Operations",
    "Ready for work",
    {200: answer("Yes.", _TEXT, PLAIN), 503: answer("No, and why.", _TEXT, PLAIN)},
    operationId="ready",
    security=ANYONE,
)
HEALTH: Final = route(
    "Operations",
    "How this deployment is",
    {200: answer("Well, or in part.", ref("Health")), 503: answer("Not at all.", ref("Health"))},
    operationId="health",
    security=ANYONE,
)
METRICS: Final = route(
    "Operations", "Prometheus", {200: answer("Metrics.", _TEXT, PLAIN)}, operationId="metrics", security=ANYONE
)
WORKERS: Final = route(
    "Operations",
    "Workers and their backends",
    {200: linked(answer("Workers.", ref("Workers")), "worker_id", "/0/id", "drainWorker"), **refusals(PROBLEM, 401)},
    operationId="listWorkers",
    security=KEY,
)
DRAIN_WORKER: Final = route(
    "Operations",
    "Have a worker end its work and leave",
    {
        202: answer(
            "It was told: it takes nothing new, lets what runs end for a while, puts back the rest.", ref("Drained")
        ),
        **refusals(OPENAI_ERROR, 401, 403, 404),
    },
    parameters=[path("worker_id", "A worker's id, as `/workers` lists it.", "host.1.0123abcd")],
    operationId="drainWorker",
    security=KEY,
)
QUEUES: Final = route(
    "Operations",
    "What waits, and since when",
    {200: answer("Pools.", ref("Queues")), **refusals(OPENAI_ERROR, 401)},
    operationId="listQueues",
    security=KEY,
)
