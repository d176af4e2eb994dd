"""What every provider does, the fake one included."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pytest

from common.contracts import Chunk
from common.errors import (
    HeadraceError,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnsupported,
)
from tests.providers.stages import KEY, PROMPT, TOKENS, Played, Scene, play
from tests.support.runner import WAIT_LIMIT_S
from workers.answer import Answer
from workers.providers.base import Call
from workers.providers.registry import KINDS

pytestmark = pytest.mark.parametrize("kind", KINDS)

# Tried one after the other: on a crowded machine the shortest may be over before anything comes.
LIMITS_S: Final = (0.1, 0.5, 3.0)


async def _all(played: Played, call: Call) -> list[Chunk]:
    return [chunk async for chunk in played.provider.stream(call)]


async def _until_it_fails(played: Played, call: Call) -> tuple[list[str], HeadraceError]:
    """The texts that came, and the error that ended them."""
    texts: list[str] = []
    with pytest.raises(HeadraceError) as caught:
        async for chunk in played.provider.stream(call):
            texts += _texts([chunk])
    return texts, caught.value


def _texts(chunks: list[Chunk]) -> list[str]:
    return [c["delta"]["content"] for chunk in chunks for c in chunk.choices if c["delta"].get("content")]


def _answer(chunks: list[Chunk]) -> Answer:
    answer = Answer()
    for chunk in chunks:
        answer.add(chunk)
    return answer


async def test_tokens_come_in_order_and_each_once(kind: str) -> None:
    tokens = tuple(f" {number}" for number in range(300))
    async with play(kind, Scene(tokens=tokens)) as played:
        chunks = await _all(played, played.call())
    assert tuple(_texts(chunks)) == tokens


async def test_usage_comes_at_the_end(kind: str) -> None:
    async with play(kind, Scene()) as played:
        chunks = await _all(played, played.call())
    [usage] = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 4)
    assert usage in (chunks[-1].usage, chunks[-2].usage)


async def test_the_first_delta_names_the_role_and_one_choice_finishes(kind: str) -> None:
    async with play(kind, Scene()) as played:
        chunks = await _all(played, played.call())
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert {choice["index"] for choice in choices} == {0}


async def test_an_answer_in_one_piece_equals_the_streamed_ones_sum(kind: str) -> None:
    async with play(kind, Scene()) as played:
        streamed = _answer(await _all(played, played.call()))
        whole = await _all(played, played.call(stream=False))
    assert len(whole) == 1
    assert _answer(whole).result()["choices"] == streamed.result()["choices"]
    assert _answer(whole).usage == streamed.usage
    assert streamed.result()["choices"][0]["message"]["content"] == "".join(TOKENS)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, UpstreamRefused),
        (401, UpstreamCredentials),
        (404, UpstreamRefused),
        (429, UpstreamBusy),
        (500, UpstreamError),
        (504, UpstreamTimeout),
    ],
)
async def test_each_refusal_becomes_our_error(kind: str, status: int, error: type[UpstreamError], stream: bool) -> None:
    async with play(kind, Scene(refuse=status)) as played:
        texts, caught = await _until_it_fails(played, played.call(stream=stream))
    assert type(caught) is error
    assert texts == []


async def test_a_busy_server_says_when_to_come_back(kind: str) -> None:
    async with play(kind, Scene(refuse=429)) as played:
        _, caught = await _until_it_fails(played, played.call())
    assert caught.failure.retry_after_s == 7


@pytest.mark.parametrize("at", [0, 2, 4])
async def test_a_failure_in_mid_stream_comes_after_the_tokens_before_it(kind: str, at: int) -> None:
    async with play(kind, Scene(fail_at=at)) as played:
        texts, caught = await _until_it_fails(played, played.call())
    assert type(caught) is UpstreamError
    assert tuple(texts) == TOKENS[:at]


async def test_a_cut_connection_is_an_unreachable_server(kind: str) -> None:
    async with play(kind, Scene(break_at=2)) as played:
        texts, caught = await _until_it_fails(played, played.call())
    assert type(caught) is UpstreamUnreachable
    assert tuple(texts) == TOKENS[: len(texts)]


async def test_an_answer_without_its_end_is_never_taken_for_whole(kind: str) -> None:
    async with play(kind, Scene(stop_short=True)) as played:
        texts, caught = await _until_it_fails(played, played.call())
    assert type(caught) is UpstreamProtocolError
    assert tuple(texts) == TOKENS


@pytest.mark.parametrize("stream", [True, False])
async def test_the_calls_time_limit_holds_for_a_silent_server(kind: str, stream: bool) -> None:
    async with play(kind, Scene(hang_at=0)) as played:
        _, caught = await _until_it_fails(played, played.call(stream=stream, timeout_s=0.1))
    assert type(caught) is UpstreamTimeout


async def test_the_calls_time_limit_holds_while_tokens_keep_coming(kind: str) -> None:
    texts: list[str] = []
    for limit_s in LIMITS_S:
        async with play(kind, Scene(drip=True)) as played:
            texts, caught = await _until_it_fails(played, played.call(timeout_s=limit_s))
        assert type(caught) is UpstreamTimeout
        if texts:
            break
    assert texts


@pytest.mark.parametrize("timeout_s", [0, -1])
async def test_a_call_without_time_left_is_not_made(kind: str, timeout_s: float) -> None:
    async with play(kind, Scene()) as played:
        texts, caught = await _until_it_fails(played, played.call(timeout_s=timeout_s))
        assert played.upstream is None or played.upstream.requests == []
    assert type(caught) is UpstreamTimeout
    assert texts == []


MALFORMED: list[dict[str, Any]] = [
    *({"messages": value} for value in (None, "x", 5, {}, [None], ["x"], [5], [{}], [{"role": 5}])),
    *({"messages": [{"role": "user", "content": value}]} for value in (5, {}, [None], ["x"], [{"type": "text"}], [{}])),
    *({"messages": [{"role": "assistant", "tool_calls": value}]} for value in ("x", [5], [{}], [{"function": 5}])),
    *(
        {name: value}
        for name in ("n", "max_tokens", "top_logprobs", "stop", "tools", "tool_choice")
        for value in (-1, {})
    ),
    *({"response_format": value} for value in (5, {"type": 5}, {"type": "json_schema", "json_schema": 5})),
    *({"stream_options": value} for value in (5, [])),
    {"tools": [5], "tool_choice": "required"},
    {"tools": [{"function": {}}], "tool_choice": {"function": 5}},
]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_malformed_request_is_at_worst_refused(kind: str, stream: bool) -> None:
    async with play(kind, Scene()) as played:
        for body in MALFORMED:
            with suppress(UpstreamRefused):
                await _all(played, played.call(stream=stream, **body))


async def test_a_server_that_falls_silent_is_given_up(kind: str) -> None:
    texts: list[str] = []
    for limit_s in LIMITS_S:
        async with play(kind, Scene(hang_at=2), idle_timeout_s=limit_s) as played:
            texts, caught = await _until_it_fails(played, played.call(timeout_s=60))
        assert type(caught) is UpstreamTimeout
        if len(texts) == 2:
            break
    assert tuple(texts) == TOKENS[:2]


async def test_the_time_limit_interrupts_only_the_provider(kind: str) -> None:
    for limit_s in LIMITS_S:
        async with play(kind, Scene(drip=True)) as played:
            chunks = played.provider.stream(played.call(timeout_s=limit_s))
            if await _nothing_came(chunks):
                continue
            # What the reader does between two chunks is its own affair, however long it takes.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 2 * limit_s)
            with pytest.raises(UpstreamTimeout):
                async for _ in chunks:
                    pass
            return
    pytest.fail("nothing ever came")


async def _nothing_came(chunks: AsyncGenerator[Chunk]) -> bool:
    """Whether the limit was over before the first chunk."""
    try:
        await anext(chunks)
    except UpstreamTimeout:
        return True
    return False


async def test_cancelling_ends_the_call_and_closes_its_connection(kind: str) -> None:
    async with play(kind, Scene(hang_at=2)) as played:
        begun = asyncio.Event()

        async def read() -> None:
            async for chunk in played.provider.stream(played.call()):
                if _texts([chunk]):
                    begun.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), WAIT_LIMIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if played.upstream is not None:
            await asyncio.wait_for(played.upstream.gone.wait(), WAIT_LIMIT_S)
            assert played.upstream.open == 0


async def test_cancelling_before_the_first_byte_closes_the_connection(kind: str) -> None:
    async with play(kind, Scene(hang_at=0)) as played:
        task = asyncio.create_task(_all(played, played.call(stream=False)))
        done, _ = await asyncio.wait([task], timeout=0.1)
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if played.upstream is not None:
            await asyncio.wait_for(played.upstream.gone.wait(), WAIT_LIMIT_S)


async def test_closing_the_generator_closes_the_connection(kind: str) -> None:
    async with play(kind, Scene(hang_at=2)) as played:
        chunks = played.provider.stream(played.call())
        await anext(chunks)
        await chunks.aclose()
        if played.upstream is not None:
            await asyncio.wait_for(played.upstream.gone.wait(), WAIT_LIMIT_S)


async def test_calls_at_the_same_time_do_not_mix(kind: str) -> None:
    scenes = [Scene(tokens=tuple(f" {name}{number}" for number in range(50))) for name in "abc"]
    async with (
        play(kind, scenes[0]) as a,
        play(kind, scenes[1]) as b,
        play(kind, scenes[2]) as c,
    ):
        answers = await asyncio.gather(*(_all(played, played.call()) for played in (a, b, c)))
    assert [tuple(_texts(chunks)) for chunks in answers] == [scene.tokens for scene in scenes]


async def test_an_endpoint_it_does_not_serve_is_refused(kind: str) -> None:
    async with play(kind, Scene()) as played:
        _, caught = await _until_it_fails(played, replace(played.call(), endpoint="/v1/images"))
    assert type(caught) is UpstreamUnsupported


@pytest.mark.parametrize("scene", [Scene(), Scene(refuse=400), Scene(refuse=401), Scene(refuse=500), Scene(fail_at=1)])
async def test_neither_key_nor_prompt_gets_into_errors_or_logs(
    kind: str, caplog: pytest.LogCaptureFixture, scene: Scene
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    async with play(kind, scene) as played:
        try:
            await _all(played, played.call())
        except HeadraceError as error:
            told += [str(error), repr(error.failure), *(str(cause) for cause in (error.__cause__, error.__context__))]
    for text in [*told, caplog.text]:
        assert KEY not in text
        assert PROMPT not in text
        assert "10.0.0.1" not in text
