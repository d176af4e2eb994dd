"""A caller of the gateway's HTTP routes, as any user's program would be: submit, ask, follow a job's events."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from common.clock import Clock, SystemClock
from deploy.local.sse import Decoder, Event
from deploy.local.trouble import Exit, Trouble

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DONE: Final = "[DONE]"
_LONGEST_SILENCE_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 5.0
_MOST_FAILURES: Final = 8

JsonObject = dict[str, Any]


def data_directory() -> Path:
    """Where a `headrace up` started from here keeps its data."""
    return Path(os.environ.get("HEADRACE_DATA_DIR") or ".headrace")


def find_gateway(url: str | None, key: str | None, directory: Path) -> tuple[str, str | None]:
    """Where the gateway is and with which key: as told, else as the `headrace up` of this data directory noted it."""
    state = state_of_up(directory)
    found = (url or state.get("url") or DEFAULT_URL).rstrip("/").removesuffix("/v1")
    # A key goes only to the gateway that it was noted for.
    return found, key or (state.get("key") if found == state.get("url") else None)


def state_of_up(directory: Path) -> dict[str, str]:
    """What the running `headrace up` of this data directory noted about itself; nothing where none runs."""
    try:
        return json.loads((directory / "up.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class GatewayClient:
    """One gateway, one key. Every failure is a Trouble with words for people."""

    def __init__(self, url: str, key: str | None, clock: Clock | None = None) -> None:
        self.url = url
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=10, trust_env=False)
        self._clock = clock or SystemClock()

    async def __aenter__(self) -> GatewayClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        return await self._ask("GET", path)

    async def submit(self, job: JsonObject, *, idempotency_key: str | None = None) -> JsonObject:
        """The accepted job's id, status and links."""
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return await self._ask("POST", "/v1/jobs", json=job, headers=headers)

    async def job(self, job_id: str) -> JsonObject:
        """The job's record."""
        return await self._ask("GET", f"/v1/jobs/{job_id}")

    async def drain(self, worker: str) -> None:
        """The worker was told to end its work and leave."""
        await self._ask("POST", f"/v1/admin/workers/{quote(worker, safe='')}/drain")

    async def dead_letters(self, *, most: int) -> list[JsonObject]:
        """The caller's newest dead letters."""
        return (await self._ask("GET", "/v1/admin/dead-letters", params={"limit": most}))["data"]

    async def replay(self, job_id: str) -> str:
        """The id of the job that a dead letter runs as anew."""
        return (await self._ask("POST", f"/v1/admin/dead-letters/{quote(job_id, safe='')}/replay"))["id"]

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise refusal(answer.status_code, answer.content)
        return answer.json()

    def _unreachable(self, error: Exception) -> Passing:
        reason = str(error) or type(error).__name__
        return Passing(
            f"no gateway answers at {self.url} ({reason}); start one with ./just up, or pass --url", Exit.UNAVAILABLE
        )

    async def events(self, job_id: str, after: str = "") -> AsyncGenerator[Event]:
        """The job's events after a position over one connection; ends with the connection, raises Passing if cut."""
        headers = {"accept": "text/event-stream", **({"last-event-id": after} if after else {})}
        decoder = Decoder()
        timeout = httpx.Timeout(10, read=_LONGEST_SILENCE_S)
        path = f"/v1/jobs/{job_id}/events"
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if answer.is_error:
                    raise refusal(answer.status_code, await answer.aread())
                if answer.status_code == HTTPStatus.NO_CONTENT:
                    yield Event(DONE, after)  # nothing comes after that position: the job has ended there
                async for piece in answer.aiter_bytes():
                    for event in decoder.feed(piece):
                        yield event
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def follow(self, job_id: str, after: str = "") -> AsyncGenerator[Event]:
        """The job's events to the very end, over as many connections as it takes; each event once."""
        failures = 0
        while True:
            last = Passing("the stream ended before the job did", Exit.UNAVAILABLE)
            try:
                async with aclosing(self.events(job_id, after)) as events:
                    async for event in events:
                        if event.data == DONE:
                            return
                        after, failures = event.id, 0
                        yield event
                        if is_error(event):
                            return
            except Passing as passing:
                last = passing
            failures += 1
            if failures > _MOST_FAILURES:
                raise last
            await self._clock.sleep(min(_LONGEST_PAUSE_S, 0.1 * 2**failures))


class Passing(Trouble):
    """Something that may be over when it is tried again."""


def is_error(event: Event) -> bool:
    """Whether this is the error that ends a stream."""
    return event.data.startswith('{"error"')


def refusal(status: int, body: bytes) -> Trouble:
    """The gateway's refusal in words."""
    hint = "; pass --key or set HEADRACE_API_KEY" if status == HTTPStatus.UNAUTHORIZED else ""
    message = f"the gateway refused ({status}): {_message_in(body)}{hint}"
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Passing(message, Exit.UNAVAILABLE)
    return Trouble(message)


def _message_in(body: bytes) -> str:
    """The sentence in an OpenAI error object or an RFC 9457 problem; else the beginning of whatever came."""
    try:
        answer: JsonObject = json.loads(body)
        return str(answer["error"]["message"] if "error" in answer else answer["detail"])
    except (ValueError, TypeError, KeyError):
        return body[:200].decode(errors="replace")


def text_of(chunk: JsonObject) -> str:
    """The text that a streamed chunk of the first choice adds."""
    return _text(chunk, "delta")


def result_text(record: JsonObject) -> str:
    """The whole answer's text as a job's record has it."""
    result: JsonObject = record.get("result") or {}
    return _text(result, "message")


def _text(answer: JsonObject, part: str) -> str:
    choices: list[JsonObject] = answer.get("choices") or [{}]
    inner: JsonObject = choices[0].get(part) or {}
    return str(choices[0].get("text") or inner.get("content") or "")
