"""`headrace submit` and `headrace watch`: one job in, its tokens out, whatever happens to the connection."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import orjson
from rich.console import Console

from deploy.local.client import GatewayClient, is_error, text_of
from deploy.local.trouble import Exit


def chat_job(prompt: str, model: str, *, priority: str, max_tokens: int | None = None) -> dict[str, Any]:
    """The body of POST /v1/jobs for one question."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        **({"max_tokens": max_tokens} if max_tokens else {}),
    }
    return {"endpoint": "/v1/chat/completions", "body": body, "priority": priority}


async def pick_model(client: GatewayClient, wanted: str | None) -> str:
    """The model asked for, or else the first that the gateway has."""
    if wanted:
        return wanted
    listed = await client.get("/v1/models")
    return str(listed["data"][0]["id"]) if listed["data"] else ""


async def watch(client: GatewayClient, job_id: str, console: Console, *, after: str = "") -> Exit:
    """Prints the job's text as it comes, to the end; the exit code tells how the job ended."""
    async with aclosing(client.follow(job_id, after)) as events:
        async for event in events:
            if event.name == "reset":
                console.print("\n[the answer begins anew]\n", markup=False, style="dim")
            elif is_error(event):
                console.print(f"\n{failure_text(event.data)}", markup=False, style="red")
                return Exit.FAILED
            else:
                show_text(console, text_of(orjson.loads(event.data)))
    console.print()
    record = await client.job(job_id)
    return Exit.OK if record["status"] == "succeeded" else Exit.FAILED


def show_text(console: Console, text: str) -> None:
    """Prints a piece of an answer as it is."""
    console.print(text, end="", highlight=False, markup=False, soft_wrap=True)


def failure_text(data: str) -> str:
    """An error event's sentence."""
    error = orjson.loads(data)["error"]
    return f"failed: {error['message']} ({error.get('code')})"
