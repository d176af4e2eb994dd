"""Runs of jobs over a real store: when an answer counts as begun, where it goes before, what its end tells."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

import orjson
import pytest

from common.contracts import Chunk, FailedTarget, JsonObject, Outcome, State
from common.errors import HeadraceError, UpstreamError, UpstreamModelMissing, UpstreamUnreachable
from common.queue import Claim, Settlement
from common.stream import Refusal, Tokens
from common.tokens import TokenCounter
from tests.store.test_attempts import Rig, failing, rigs
from tests.support.redis_server import RedisServer
from tests.support.seeds import a_job
from workers.attempts import Attempts
from workers.embedding import Embedding
from workers.inference import Inference
from workers.providers.base import Call, Embedded
from workers.publisher import Publisher
from workers.runs import GiveBack

pytestmark = pytest.mark.either_server

BACKENDS = [{"name": name, "kind": "echo"} for name in "ab"]
SETUP: dict[str, Any] = {
    "backends": BACKENDS,
    "models": {
        "m": {"targets": [{"backend": "a", "model": "one"}, {"backend": "b", "model": "two"}]},
        "hasty": {
            "targets": [{"backend": "a", "model": "one"}, {"backend": "b", "model": "two"}],
            "hedge_after_ms": 80,
        },
        "sized": {
            "targets": [
                {"backend": "a", "model": "one", "context_tokens": 2_048},
                {"backend": "b", "model": "two", "context_tokens": 200_000},
            ]
        },
    },
}


def piece(delta: JsonObject, reason: str | None = None) -> Chunk:
    return Chunk([{"index": 0, "delta": delta, "finish_reason": reason}])


ROLE = piece({"role": "assistant", "content": ""})
WORD = piece({"content": "hi"})
LAST = piece({}, "stop")
HANGS = object()
Script = Sequence[Chunk | HeadraceError | object]


class Scripted:
    """A provider that sends what the test wrote down for each backend."""

    kind: ClassVar[str] = "echo"

    def __init__(self, scripts: dict[str, Script]) -> None:
        self.scripts = scripts
        self.called: list[str] = []

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        self.called.append(call.backend.name)
        for step in self.scripts[call.backend.name]:
            if isinstance(step, HeadraceError):
                raise step
            if isinstance(step, Chunk):
                yield step
            else:
                await asyncio.Event().wait()

    async def embed(self, call: Call) -> Embedded:
        self.called.append(call.backend.name)
        for step in self.scripts[call.backend.name]:
            if isinstance(step, HeadraceError):
                raise step
        return Embedded([b"\0\0\0\0"])


class Written:
    """Keeps the events that left the house."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    async def append(self, pool: str, worker: str, tokens: Sequence[Tokens]) -> dict[str, Refusal]:
        self.events += [orjson.loads(line) for item in tokens for line in item.events.split(b"\n")]
        return {}


async def run(
    rig: Rig, provider: Scripted, *, deadline_ms: int = 5_000, tokens: TokenCounter | None = None, **job: Any
) -> tuple[Settlement | GiveBack, list[Any]]:
    """How the run of a streamed job ended, and all the events that its readers get."""
    written = Written()
    publisher = Publisher(written, rig.clock, worker_id=lambda: "w", refused=lambda _job, _why: None)
    attempts = Attempts(rig.attempts._settings, rig.fleet, {"echo": provider}, rig.clock, rig.metrics)
    tokens = tokens or TokenCounter()
    inference = Inference(attempts, publisher, rig.clock, rig.metrics, tokens, 1_000_000)
    given: dict[str, Any] = {"stream": True} | job
    made = a_job(1, **given)
    try:
        end = await inference.begin(Claim(made, 1, 1, 0, 0, deadline_ms, 0)).perform()
    finally:
        await publisher.close()
        tokens.close()
    last = end.events.split(b"\n") if isinstance(end, Settlement) and end.events else []
    return end, written.events + [orjson.loads(line) for line in last]


def outcome_of(end: Settlement | GiveBack) -> Outcome:
    assert isinstance(end, Settlement), end
    return end.outcome


def deltas(events: list[Any]) -> list[Any]:
    return [event["choices"][0]["delta"] for event in events]


# --- before the first word --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_what_fails_after_its_role_alone_is_answered_elsewhere(stream: bool, redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        provider = Scripted({"a": [ROLE, UpstreamUnreachable()], "b": [ROLE, WORD, LAST]})
        end, events = await run(rig, provider, stream=stream)
        assert outcome_of(end).status is State.SUCCEEDED
        assert deltas(events) == [{"role": "assistant", "content": ""}, {"content": "hi"}, {}]


async def test_a_role_alone_does_not_keep_a_hedge_from_being_called(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        provider = Scripted({"a": [ROLE, HANGS], "b": [WORD, LAST]})
        end, events = await run(rig, provider, model="hasty")
        assert provider.called == ["a", "b"]
        assert (outcome_of(end).backend, deltas(events)) == ("b", [{"content": "hi"}, {}])


async def test_a_role_alone_is_no_first_token(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        end, events = await run(rig, Scripted({"a": [ROLE, HANGS], "b": []}), deadline_ms=100)
        assert (outcome_of(end).status, events) == (State.EXPIRED, [])
        assert "first_token" not in outcome_of(end).timings_ms


async def test_an_answer_that_says_nothing_and_never_ends_its_choice_is_still_an_answer(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        end, events = await run(rig, Scripted({"a": [ROLE], "b": []}))
        assert (outcome_of(end).backend, deltas(events)) == ("a", [ROLE.choices[0]["delta"]])
        assert isinstance(end, Settlement)
        assert orjson.loads(end.result)["choices"][0]["message"]["content"] == ""


async def test_what_breaks_after_a_word_is_no_longer_answered_elsewhere(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        provider = Scripted({"a": [ROLE, WORD, HANGS], "b": [WORD, LAST]})
        end, events = await run(rig, provider, deadline_ms=300, model="hasty")
        assert provider.called == ["a"]
        assert (outcome_of(end).status, deltas(events)[1:]) == (State.EXPIRED, [{"content": "hi"}])


# --- what the end tells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UpstreamUnreachable(), UpstreamModelMissing()], ids=lambda one: one.code)
async def test_an_end_tells_who_answered_and_who_had_failed_before(
    error: UpstreamError, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        end, _ = await run(rig, Scripted({"a": [error], "b": [WORD, LAST]}))
        told = outcome_of(end)
        assert (told.backend, told.upstream_model) == ("b", "two")
        assert told.failed_targets == [FailedTarget("a", "one", error.failure.code)]


async def test_the_end_of_embeddings_tells_it_too(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        provider, tokens = Scripted({"a": [UpstreamUnreachable()], "b": []}), TokenCounter()
        attempts = Attempts(rig.attempts._settings, rig.fleet, {"echo": provider}, rig.clock, rig.metrics)
        job = a_job(1, endpoint="/v1/embeddings", body={"input": "text"})
        runs = Embedding(attempts, rig.clock, rig.metrics, tokens, most_bytes=1_000)
        told = outcome_of(await runs.begin(Claim(job, 1, 1, 0, 0, 5_000, 0)).perform())
        tokens.close()
        assert (told.backend, told.upstream_model) == ("b", "two")
        assert told.failed_targets == [FailedTarget("a", "one", "upstream_unreachable")]


async def test_pictures_count_towards_the_longest_answer(redis_server: RedisServer) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 600_000}}
    drawn = [piece({"images": [image]}) for _ in range(2)]
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        end, events = await run(rig, Scripted({"a": [*drawn, LAST], "b": [*drawn[:1], LAST]}), stream=False)
        assert outcome_of(end).failed_targets == [FailedTarget("a", "one", "upstream_protocol_error")]
        assert deltas(events) == [{"images": [image]}, {}]


async def test_an_end_at_the_first_target_tells_of_no_failure(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        end, _ = await run(rig, Scripted({"a": [WORD, LAST]}))
        told = outcome_of(end)
        assert (told.backend, told.upstream_model, told.failed_targets) == ("a", "one", [])


async def test_a_target_that_took_no_call_is_among_those_that_failed(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP, breaker_failures=1) as (rig,):
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        await rig.answer("m")
        await rig.told()
        rig.provider.does["b"] = failing(UpstreamUnreachable())
        failed: list[FailedTarget] = []
        await rig.misses("m", failed=failed)
        codes = [(one.backend, one.code) for one in failed]
        assert codes == [("b", "upstream_unreachable"), ("a", "upstream_unavailable")]


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt_tokens", "body", "called"),
    [
        (1_000, {}, "a"),
        (2_048, {}, "b"),
        (1_000, {"max_tokens": 1_500}, "b"),
        (1_000, {"max_completion_tokens": 1_000}, "a"),
        (50_000, {}, "b"),
    ],
)
async def test_a_prompt_goes_first_to_where_it_is_likely_to_fit(
    prompt_tokens: int, body: JsonObject, called: str, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        provider = Scripted({"a": [WORD, LAST], "b": [WORD, LAST]})
        await run(rig, provider, model="sized", prompt_tokens=prompt_tokens, body={"messages": [], **body})
        assert provider.called == [called]


@pytest.mark.parametrize(("prompt_tokens", "called"), [(3_000, ["b", "a"]), (40_000, ["b"])])
async def test_where_it_surely_does_not_fit_it_never_goes_while_another_has_room(
    prompt_tokens: int, called: list[str], redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        provider = Scripted({"a": [WORD, LAST], "b": [UpstreamUnreachable()]})
        await run(rig, provider, model="sized", prompt_tokens=prompt_tokens)
        assert provider.called == called


# --- counting ---------------------------------------------------------------------------------------------------------


class Held:
    """A count that is under way until it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()
        self.tokens = TokenCounter(count=self._count)

    def _count(self, _: Sequence[str]) -> int:
        self._loop.call_soon_threadsafe(self.begun.set)
        self._over.wait(15)
        return 1_000

    async def ends(self, running: asyncio.Task[Any]) -> Any:
        """What a task gives that is told to stop while it waits for the count."""
        try:
            await asyncio.wait_for(self.begun.wait(), 15)
            running.cancel()
            return await running
        finally:
            self._over.set()
            self.tokens.close()


async def test_an_order_to_stop_while_tokens_are_counted_costs_the_count_and_not_the_answer(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        held = Held()
        running = asyncio.create_task(run(rig, Scripted({"a": [WORD, LAST], "b": []}), tokens=held.tokens))
        told = outcome_of((await held.ends(running))[0])
        assert (told.status, running.cancelling()) == (State.SUCCEEDED, 0)
        assert told.usage is not None
        assert (told.usage.completion_tokens, told.usage.details) == (1, {"estimated": True})


async def test_so_it_is_with_embeddings(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        held, provider = Held(), Scripted({"a": [], "b": []})
        attempts = Attempts(rig.attempts._settings, rig.fleet, {"echo": provider}, rig.clock, rig.metrics)
        runs = Embedding(attempts, rig.clock, rig.metrics, held.tokens, most_bytes=1_000)
        job = a_job(1, endpoint="/v1/embeddings", body={"input": "text"}, prompt_tokens=7)
        running = asyncio.create_task(runs.begin(Claim(job, 1, 1, 0, 0, 5_000, 0)).perform())
        told = outcome_of(await held.ends(running))
        assert (told.status, told.usage and told.usage.prompt_tokens) == (State.SUCCEEDED, 7)
