"""Callers that come at their own times: each call's fate is noted, refusals too, and set beside what upstreams saw."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

from tests.bench.answers import StreamedAnswer
from tests.bench.load import LoadFailed, percentile
from tests.bench.upstream import token
from tests.bench.visits import Visit, marked

LIMIT_S: Final = 180
REFUSALS: Final = frozenset({429, 503})
_CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Ask:
    """One kind of call: who asks what, and how long the right answer is."""

    body: Mapping[str, Any]
    tokens: int
    api_key: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    path: str = _CHAT
    kind: str = ""

    @property
    def waited_for(self) -> bool:
        """Whether the call brings the answer, not only an acceptance."""
        return self.path == _CHAT


@dataclass(slots=True)
class Seen:
    """What became of one call. Times in seconds of the machine's monotonic clock."""

    number: int
    kind: str
    sent_s: float
    status: int = 0
    answered_s: float | None = None
    first_s: float | None = None
    ended_s: float | None = None
    wrong: str | None = None
    tokens: int = 0
    retry_after_s: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the whole right answer came."""
        return self.ended_s is not None and self.wrong is None

    @property
    def refused(self) -> bool:
        """Whether it was refused honestly, as 429 or 503, before anything else came."""
        return self.status in REFUSALS


class Asks:
    """Calls whose answers vary in length, evenly between two bounds, by nothing but the seed."""

    def __init__(self, model: str, tokens: tuple[int, int], api_keys: Sequence[str], seed: int, **rest: Any) -> None:
        self._dice = random.Random(seed)
        self._model = model
        self._tokens = tokens
        self._keys = itertools.cycle(api_keys)
        self._rest = rest

    def __call__(self) -> Ask:
        """The next one, of the next key's tenant."""
        tokens = self._dice.randint(*self._tokens)
        return Ask(streamed(self._model, "Count on.", tokens), tokens, next(self._keys), **self._rest)


def streamed(model: str, text: str, tokens: int, *, system: str = "Answer briefly.") -> dict[str, Any]:
    """A streamed chat request's body."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return {"model": model, "messages": messages, "stream": True, "max_tokens": tokens}


class Callers:
    """Sends calls to one gateway and keeps what became of them. Calls are numbered from 0 over the object's life."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._base = f"http://127.0.0.1:{port}"
        self._next = 0

    async def call(self, ask: Ask) -> Seen:
        """One call to its end."""
        number, self._next = self._next, self._next + 1
        data = orjson.dumps(_numbered(ask, number))
        headers = {"authorization": f"Bearer {ask.api_key}", "content-type": "application/json", **ask.headers}
        seen = Seen(number, ask.kind, time.monotonic())
        try:
            async with self._session.post(self._base + ask.path, data=data, headers=headers) as reply:
                seen.status, seen.answered_s = reply.status, time.monotonic()
                await _read(reply, ask, seen)
        except (aiohttp.ClientError, TimeoutError) as error:
            seen.wrong = f"{type(error).__name__}: {error}"
        return seen

    async def open_loop(self, ask: Callable[[], Ask], *, rate_per_s: float, seconds: float, seed: int) -> list[Seen]:
        """Calls at Poisson times for so long, whatever the answers take; comes back when all have ended."""
        gaps = random.Random(seed)
        began_s = due_s = time.monotonic()
        running: list[asyncio.Task[Seen]] = []
        while (due_s := due_s + gaps.expovariate(rate_per_s)) < began_s + seconds:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            running.append(asyncio.create_task(self.call(ask())))
        return await asyncio.gather(*running)

    async def closed_loop(self, ask: Callable[[], Ask], *, callers: int, seconds: float) -> list[Seen]:
        """So many callers, each asking again as soon as it was answered, for so long."""
        over_s = time.monotonic() + seconds

        async def one() -> list[Seen]:
            found: list[Seen] = []
            while time.monotonic() < over_s:
                found.append(await self.call(ask()))
            return found

        return [seen for found in await asyncio.gather(*(one() for _ in range(callers))) for seen in found]


@asynccontextmanager
async def callers(port: int) -> AsyncGenerator[Callers]:
    """Callers with as many connections as they need."""
    # Idle connections are given up before the server gives them up: a call on one that is closing would fail.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        yield Callers(session, port)


def _numbered(ask: Ask, number: int) -> dict[str, Any]:
    body = dict(ask.body)
    inner = body if ask.waited_for else dict(body["body"])
    *before, last = inner["messages"]
    inner["messages"] = [*before, {**last, "content": marked(number, last["content"])}]
    return inner if ask.waited_for else {**body, "body": inner}


async def _read(reply: aiohttp.ClientResponse, ask: Ask, seen: Seen) -> None:
    if reply.status != 200 or not ask.waited_for:
        text = await reply.read()
        seen.retry_after_s = float(reply.headers["retry-after"]) if "retry-after" in reply.headers else None
        seen.ended_s = time.monotonic()
        seen.wrong = None if reply.status == 202 else f"status {reply.status}: {text[:160]!r}"
        return
    check = StreamedAnswer("".join(token(number) for number in range(ask.tokens)))
    async for data in reply.content.iter_any():
        check.feed(data)
        if seen.first_s is None and check.started:
            seen.first_s = time.monotonic()
    seen.wrong, seen.ended_s = check.verdict(), time.monotonic()
    seen.tokens = ask.tokens if seen.wrong is None else 0


# --- what they tell ---------------------------------------------------------------------------------------------------


def paired(seen: Iterable[Seen], visits: Iterable[Visit]) -> list[tuple[Seen, Visit]]:
    """Each call with its first visit at an upstream; those that never came there are left out."""
    first: dict[int, Visit] = {}
    for visit in sorted(visits, key=lambda one: one.came_s):
        first.setdefault(visit.number, visit)
    return [(one, first[one.number]) for one in seen if one.number in first]


def waits_ms(pairs: Iterable[tuple[Seen, Visit]]) -> list[float]:
    """Queue waits: from the caller's sending to the request's coming to the upstream."""
    return [1000 * (visit.came_s - seen.sent_s) for seen, visit in pairs]


def first_ms(seen: Iterable[Seen]) -> list[float]:
    """Times to the first token of those who got one."""
    return [1000 * (one.first_s - one.sent_s) for one in seen if one.first_s is not None]


def p50_p99(values: Sequence[float]) -> tuple[float, float]:
    """Both, by nearest rank."""
    return percentile(values, 0.5), percentile(values, 0.99)


def fail_on_wrong(seen: Iterable[Seen]) -> None:
    """Raises LoadFailed where an answer was wrong or missing."""
    wrong = [one.wrong for one in seen if one.wrong is not None]
    if wrong:
        raise LoadFailed(f"{len(wrong)} answers were wrong or missing, such as: {wrong[0]}")
