"""A reader that doesn't give up: follows a job over any number of connections and gateways, into a journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any, Final, Self

import httpx

from deploy.local.sse import Decoder
from tests.support.fleet import KEY
from tests.support.history import Journal
from workers.providers.transport import AiohttpTransport

PAUSE_S: Final = 0.05
SILENCE_S: Final = 30.0
KEEPALIVE_S: Final = 15.0
FOR_LATER: Final = frozenset({429, 500, 502, 503, 504})


class Refused(Exception):
    """A gateway answered with an error: its status, code, and text."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body[:300]!r}")
        self.status = status
        self.body = body

    @property
    def code(self) -> str:
        """The error's code."""
        return str(json.loads(self.body)["error"]["code"])


def script(**words: Any) -> dict[str, Any]:
    """A chat request whose answer the scripted model makes of these words."""
    content = f"echo: {json.dumps(words)}"
    return {"model": "echo", "messages": [{"role": "user", "content": content}]}


def numbered(tokens: int, **words: Any) -> dict[str, Any]:
    """A chat request that is answered with so many numbered tokens."""
    return script(numbered=True, tokens=tokens, **words)


class Caller:
    """One tenant's HTTP client of several gateways; goes to the next when one fails."""

    def __init__(
        self, urls: Sequence[str], *, key: str = KEY, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._urls = urls
        self._turn = count()
        timeout = httpx.Timeout(SILENCE_S, connect=5)
        headers = {"authorization": f"Bearer {key}"}
        # httpx's own transport raises odd errors where a connection breaks at once, and takes long for many.
        transport = transport or AiohttpTransport(max_connections=0, keepalive_s=KEEPALIVE_S)
        self.http = httpx.AsyncClient(headers=headers, timeout=timeout, transport=transport, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    def next_url(self) -> str:
        """The next gateway's URL, in turn."""
        return self._urls[next(self._turn) % len(self._urls)]

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def submit(self, body: dict[str, Any], url: str | None = None, **options: Any) -> str:
        """The id of a job accepted by this gateway. Raises Refused, httpx.TransportError."""
        job = {"endpoint": "/v1/chat/completions", "body": body, **options}
        answer = await self.http.post((url or self.next_url()) + "/v1/jobs", json=job)
        if answer.is_error:
            raise Refused(answer.status_code, answer.content)
        return str(answer.json()["id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        """The job's record, from whichever gateway answers."""
        while True:
            try:
                answer = await self.http.get(f"{self.next_url()}/v1/jobs/{job_id}")
            except httpx.TransportError:
                await asyncio.sleep(PAUSE_S)
                continue
            if answer.is_success:
                return answer.json()
            if answer.status_code not in FOR_LATER:
                raise Refused(answer.status_code, answer.content)
            await asyncio.sleep(PAUSE_S)

    async def ended(self, job_id: str, limit_s: float = 30) -> dict[str, Any]:
        """The job's record once it has ended."""
        async with asyncio.timeout(limit_s):
            while True:
                record = await self.job(job_id)
                if record["finished_at"] is not None:
                    return record
                await asyncio.sleep(PAUSE_S)

    # --- streams ------------------------------------------------------------------------------------------------------

    async def chat(self, body: dict[str, Any], journal: Journal, url: str | None = None, **options: str) -> None:
        """Streams a completion to its end into the journal, resuming wherever the connection breaks.

        `options` are headers without `x-headrace-`. Raises Refused, or httpx.TransportError where nobody ever took it.
        """
        try:
            async with self.chatting(body, journal, url or self.next_url(), **options) as pieces:
                await self.read(pieces, journal)
        except httpx.TransportError:
            if not journal.job_id:
                raise
        await self.follow(journal)

    async def follow(self, journal: Journal) -> None:
        """Reads the journal's job to its end, from where the journal stands."""
        while journal.end is None:
            try:
                await self.follow_once(journal, self.next_url())
            except httpx.TransportError:
                await asyncio.sleep(PAUSE_S)
            except Refused as refused:
                if refused.status not in FOR_LATER:
                    raise
                await asyncio.sleep(PAUSE_S)

    async def follow_once(self, journal: Journal, url: str) -> None:
        """Reads the journal's job over one connection. Raises Refused, httpx.TransportError."""
        async with self.following(journal, url) as pieces:
            await self.read(pieces, journal)

    def chatting(
        self, body: dict[str, Any], journal: Journal, url: str, **options: str
    ) -> AbstractAsyncContextManager[Pieces]:
        """One connection that asks for a completion as a stream."""
        headers = {f"x-headrace-{name.replace('_', '-')}": value for name, value in options.items()}
        request = {**body, "stream": True}
        return self._open("POST", url + "/v1/chat/completions", journal, json=request, headers=headers)

    def following(self, journal: Journal, url: str) -> AbstractAsyncContextManager[Pieces]:
        """One connection that asks for the events of the journal's job after those that it has."""
        headers = {"last-event-id": journal.last_id} if journal.last_id else {}
        return self._open("GET", f"{url}/v1/jobs/{journal.job_id}/events", journal, headers=headers)

    async def read(self, pieces: Pieces, journal: Journal, until: Callable[[], bool] | None = None) -> None:
        """Takes events into the journal until the connection ends, or `until` is true after some."""
        async for piece in pieces.bytes:
            for event in pieces.decoder.feed(piece):
                journal.take(event)
            if until is not None and until():
                return

    @asynccontextmanager
    async def _open(self, method: str, url: str, journal: Journal, **options: Any) -> AsyncGenerator[Pieces]:
        async with self.http.stream(method, url, **options) as answer:
            if answer.is_error:
                raise Refused(answer.status_code, await answer.aread())
            journal.job_id = answer.headers.get("x-headrace-job-id", journal.job_id)
            journal.connections += 1
            if answer.status_code == 204:
                journal.take_nothing_more()
            yield Pieces(answer.aiter_raw())


class Pieces:
    """What comes over one connection, and the decoder that has what was cut in it."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.bytes = pieces
        self.decoder = Decoder()


async def until(probe: Callable[[], object], what: str, limit_s: float = 20) -> None:
    """Returns once the probe counts as true. Raises TimeoutError with these words after the limit."""
    try:
        async with asyncio.timeout(limit_s):
            while not probe():  # noqa: ASYNC110 - the state comes from another process
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise TimeoutError(what) from None
