"""Pure: what a kind of model server answers about its load, to numbers. What isn't said is None, never 0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, cast

import orjson

from common.health import Load

RUNNING_VLLM: Final = "vllm:num_requests_running"
WAITING_VLLM: Final = "vllm:num_requests_waiting"
MOST_REQUESTS: Final = 1e9
"""What isn't below it is no count: infinity, or a value that was never set."""

_SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
"""A line of Prometheus's text: a name, labels that may hold anything, a value, perhaps a time."""


def vllm(metrics: bytes) -> Load:
    """vLLM's running and waiting requests, over all its engines."""
    return Load(running=gauge(metrics, RUNNING_VLLM), waiting=gauge(metrics, WAITING_VLLM))


def llamacpp(slots: bytes) -> Load:
    """llama.cpp's busy slots. It doesn't say there how many requests wait."""
    rows = _json(slots)
    busy = [_field(row, "is_processing") for row in _items(rows)]
    if not busy or not all(isinstance(one, bool) for one in busy):
        return Load()
    return Load(running=busy.count(True))


def gauge(metrics: bytes, name: str) -> int | None:
    """The sum of a gauge over its label sets; None where no sample bears exactly this name with a usable value."""
    values = [value for value in _values(metrics, name) if 0 <= value < MOST_REQUESTS]
    return round(sum(values)) if values else None


def _values(metrics: bytes, name: str) -> Iterator[float]:
    for line in metrics.decode(errors="replace").splitlines():
        match = _SAMPLE.fullmatch(line) if line.startswith(name) else None
        # Another metric's name may begin with this one's.
        if match is None or match.group(1) != name:
            continue
        with suppress(ValueError):
            yield float(match.group(2))


def loaded_models(ps: bytes) -> str:
    """Ollama's models in memory, in words; '' where it doesn't say. It tells nothing of requests."""
    models = _field(_json(ps), "models")
    if not isinstance(models, list):
        return ""
    count = len(_items(cast(object, models)))
    return f"{count} model{'' if count == 1 else 's'} in memory"


def _items(value: object) -> list[object]:
    return cast(list[object], value) if isinstance(value, list) else []


def _field(value: object, name: str) -> object:
    return cast(dict[str, object], value).get(name) if isinstance(value, dict) else None


def _json(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
