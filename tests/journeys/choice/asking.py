"""What the journeys about choices say, and what they read of the answers."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.support.fleet import until
from tests.support.upstream import Upstream


def chat(
    client: httpx.Client, model: str, text: str = "hi", *, headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def record(client: httpx.Client, answered: httpx.Response) -> dict[str, Any]:
    """The record of the job that this answer belongs to, once it has ended."""
    path = f"/v1/jobs/{answered.headers['x-headrace-job-id']}"
    found = until(lambda: (one := client.get(path).json())["finished_at"] and one, 10)
    assert isinstance(found, dict)
    return found


def said(answered: httpx.Response) -> str:
    assert answered.status_code == 200, answered.text
    return answered.json()["choices"][0]["message"]["content"]


def chunks(answered: httpx.Response) -> list[dict[str, Any]]:
    assert answered.status_code == 200, answered.text
    data = [line.removeprefix("data: ") for line in answered.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def called(upstream: Upstream) -> list[str]:
    return [request.json()["model"] for request in upstream.requests if request.method == "POST"]
