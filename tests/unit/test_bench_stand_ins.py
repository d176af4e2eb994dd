"""The bench's stand-ins over HTTP and its callers: what was asked is answered whole, and each tells the same story."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import aiohttp

from tests.bench import engine_server, upstream, visits
from tests.bench.arrivals import Ask, Asks, Seen, callers, paired, streamed, waits_ms
from tests.bench.engine import Constants, Engine
from tests.bench.engine_server import MODEL
from tests.bench.processes import free_port
from tests.bench.upstream import SCRIPTS
from tests.bench.visits import Visit

FAST = Constants(step_ms=1, prefill_ms_a_token=0, decode_ms_a_sequence=0)
SYSTEM = " ".join(f"w{number}" for number in range(64))


async def listening(port: int, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(5):
        while not task.done():
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0)


@asynccontextmanager
async def serving(serve: Callable[[int], Coroutine[Any, Any, None]]) -> AsyncGenerator[int]:
    port = free_port()
    task = asyncio.create_task(serve(port))
    await listening(port, task)
    try:
        yield port
    finally:
        task.cancel()
        await asyncio.wait([task])


def engine() -> AbstractAsyncContextManager[int]:
    return serving(lambda port: engine_server.serve([port], FAST))


def scripted() -> AbstractAsyncContextManager[int]:
    return serving(upstream.serve)


async def page(port: int, path: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as reply:
        return await reply.read()


async def log(port: int) -> list[Visit]:
    return visits.decode(await page(port, "/log"))


async def until(state: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not state():  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0)


def ask(tokens: int, text: str = "Go on.") -> Ask:
    return Ask(streamed(MODEL, text, tokens, system=SYSTEM), tokens, "sk-none")


async def test_the_engine_streams_as_many_numbered_tokens_as_were_asked_for() -> None:
    async with engine() as port, callers(port) as made:
        seen = await made.call(ask(7))
    assert seen.wrong is None
    assert seen.tokens == 7


async def test_a_wrong_answer_is_seen_by_the_caller() -> None:
    async with engine() as port, callers(port) as made:
        seen = await made.call(replace(ask(7), tokens=8))
    assert "wrong text" in (seen.wrong or "")
    assert not seen.whole


async def test_a_second_prompt_with_the_same_system_text_is_noted_as_cached() -> None:
    async with engine() as port, callers(port) as made:
        for text in ("One.", "Two."):
            assert (await made.call(ask(2, text))).whole
        first, second = await log(port)
    assert (first.cached_tokens, second.cached_tokens) == (0, 64)
    assert second.prompt_tokens == 66  # the system's 64 words, the number and the text


async def test_the_engine_tells_its_hits_in_the_words_of_vllm() -> None:
    async with engine() as port, callers(port) as made:
        for _ in range(2):
            await made.call(ask(1))
        lines = (await page(port, "/metrics")).decode().splitlines()
    assert "vllm:prefix_cache_queries_total 134" in lines
    assert "vllm:prefix_cache_hits_total 64" in lines


async def test_a_caller_that_goes_away_leaves_no_sequence_behind() -> None:
    site = engine_server.Site(Engine(FAST))
    running = asyncio.create_task(site.run())
    generation = site.engine.add(SYSTEM.split(), 1000)
    call = engine_server.Call(generation, Visit(0, 0.0), lambda _: None, lambda: None, with_usage=False)
    site.begin(call)
    await until(lambda: generation.made >= 2)
    site.leave(call)
    await until(lambda: not site.engine.running)
    running.cancel()
    assert site.calls == {}
    assert site.engine.cache.free == FAST.blocks


async def test_each_call_meets_its_own_visit() -> None:
    async with engine() as port, callers(port) as made:
        seen = await made.closed_loop(lambda: ask(2), callers=3, seconds=0.1)
        pairs = paired(seen, await log(port))
    assert len(pairs) == len(seen) >= 3
    assert all(visit.came_s >= one.sent_s and visit.came_s <= (one.first_s or 0) for one, visit in pairs)
    assert min(waits_ms(pairs)) > 0


def test_of_several_visits_of_one_call_the_first_counts() -> None:
    pairs = paired([Seen(4, "", sent_s=1.0)], [Visit(4, 3.0), Visit(4, 2.0), Visit(5, 1.5)])
    assert waits_ms(pairs) == [1000.0]


async def test_a_scripted_answer_is_shortened_to_what_was_asked_for() -> None:
    model = "bench-second"
    async with scripted() as port, callers(port) as made:
        short = await made.call(Ask(streamed(model, "Go on.", 1), 1, "sk-none"))
        instant = await made.call(Ask(streamed("bench-instant", "Go on.", 256), SCRIPTS["bench-instant"].tokens, ""))
        seen = await log(port)
    assert short.whole
    assert instant.whole
    assert [(visit.number, visit.output_tokens, visit.whole) for visit in seen] == [(0, 1, True), (1, 16, True)]


async def test_a_refusal_is_told_with_its_wait_and_no_answer_counts_as_whole() -> None:
    async with scripted() as port, callers(port) as made:
        seen = await made.call(Ask(streamed("no-such-model", "Go on.", 1), 1, ""))
    assert seen.status == 400
    assert not seen.refused
    assert not seen.whole


async def test_an_open_loop_sends_at_its_rate_whatever_the_answers_take() -> None:
    async with engine() as port, callers(port) as made:
        seen = await made.open_loop(lambda: ask(1), rate_per_s=200, seconds=0.3, seed=1)
        again = await made.open_loop(lambda: ask(1), rate_per_s=200, seconds=0.3, seed=1)
    assert len(seen) == len(again) > 20  # by nothing but the seed
    assert [one.number for one in seen] == list(range(len(seen)))


def test_the_tenants_take_turns_and_answers_differ_in_length() -> None:
    asks = Asks("m", (5, 15), ["a", "b"], seed=1)
    made = [asks() for _ in range(200)]
    assert [one.api_key for one in made[:4]] == ["a", "b", "a", "b"]
    assert {one.tokens for one in made} == set(range(5, 16))


def test_a_text_without_a_number_is_nobodys() -> None:
    assert visits.number_of({"messages": [{"role": "user", "content": visits.marked(12, "x")}]}) == 12
    for body in ({}, {"messages": []}, {"messages": [{"content": "12 x"}]}, {"messages": [{"content": "#x y"}]}):
        assert visits.number_of(body) == -1
