"""The vLLM provider against the real engine, with weights that it makes up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import orjson
import pytest

from common.clock import SystemClock
from common.contracts import Chunk
from common.errors import ContextTooLong, UpstreamRefused
from scheduler.prober import probe
from tests.providers.stages import Played, backend
from tests.real.engine import Vllm
from tests.real.tiny import CONTEXT_TOKENS, token_id
from tests.support.runner import until
from workers.answer import Answer
from workers.providers.registry import make
from workers.providers.transport import new_client

pytestmark = pytest.mark.timeout(600)

PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SAYS_BAB: Final[dict[str, Any]] = {"logit_bias": {str(token_id(" bab")): 100}}
"""Has a model without sense say ` bab` again and again."""
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
# Only what is strict is held to its schema.
TOOL: Final = {"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}
LONG: Final[dict[str, Any]] = {**SAYS_BAB, "max_tokens": CONTEXT_TOKENS - 400}
LEFT_LIMIT_S: Final = 2

Note = Callable[[str, object], None]


@asynccontextmanager
async def _played(engine: Vllm) -> AsyncGenerator[Played]:
    async with new_client() as client:
        yield Played(make("vllm", client), backend("vllm", engine.url), None)


async def _chunks(engine: Vllm, *, stream: bool = True, **body: Any) -> list[Chunk]:
    async with _played(engine) as played:
        # The first request with something new compiles it.
        call = played.call(stream=stream, timeout_s=200, **body)
        return [chunk async for chunk in played.provider.stream(call)]


async def _answer(engine: Vllm, **body: Any) -> Answer:
    answer = Answer()
    for chunk in await _chunks(engine, **body):
        answer.add(chunk)
    return answer


async def _message(engine: Vllm, **body: Any) -> Any:
    return (await _answer(engine, **body)).result()["choices"][0]["message"]


async def test_a_stream_and_an_answer_in_one_piece_say_the_same(engine: Vllm) -> None:
    streamed = await _answer(engine, max_tokens=20, **SAYS_BAB)
    whole = await _answer(engine, max_tokens=20, stream=False, **SAYS_BAB)
    one, other = (answer.result()["choices"][0] for answer in (streamed, whole))
    assert one["message"] == other["message"]
    assert one["message"]["content"] == " bab" * 20
    assert one["finish_reason"] == other["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
async def test_its_usage_is_told(engine: Vllm, stream: bool) -> None:
    usage = (await _answer(engine, max_tokens=7, stream=stream, **SAYS_BAB)).usage
    assert usage.completion_tokens == 7
    assert usage.prompt_tokens > 10
    assert "estimated" not in usage.details


async def test_the_newer_name_of_the_limit_is_understood(engine: Vllm) -> None:
    assert (await _answer(engine, max_completion_tokens=3, **SAYS_BAB)).usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_sequence_ends_the_answer_and_is_named(engine: Vllm, stream: bool) -> None:
    answer = await _answer(engine, max_tokens=50, stop=["nothing", "bab bab"], stream=stream, **SAYS_BAB)
    choice = answer.result()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (" ", "stop")
    assert choice["stop_reason"] == "bab bab"


async def test_several_choices_each_have_a_role_and_an_end(engine: Vllm) -> None:
    chunks = await _chunks(engine, max_tokens=4, n=2, ignore_eos=True)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]


@pytest.mark.parametrize("stream", [True, False])
async def test_log_probabilities_come_for_each_token(engine: Vllm, stream: bool) -> None:
    answer = await _answer(engine, max_tokens=3, logprobs=True, top_logprobs=2, stream=stream, ignore_eos=True)
    entries = answer.result()["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2, 2, 2]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_schema_binds_the_answer(engine: Vllm, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    message = await _message(engine, max_tokens=60, response_format=form, stream=stream)
    assert orjson.loads(message["content"])["a"] in ("x", "y")


async def test_its_own_fields_pass_through(engine: Vllm) -> None:
    message = await _message(engine, max_tokens=9, structured_outputs={"choice": ["heron"]})
    assert message["content"] == "heron"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}], ids=["any", "named"])
async def test_a_forced_tool_is_called_with_what_its_schema_allows(engine: Vllm, stream: bool, choice: Any) -> None:
    # Told to call some tool, these weights call until they may no longer.
    message = await _message(engine, max_tokens=400, tools=[TOOL], tool_choice=choice, stream=stream)
    call = message["tool_calls"][0]
    assert (call["type"], call["function"]["name"]) == ("function", "f") and call["id"]
    assert orjson.loads(call["function"]["arguments"])["a"] in ("x", "y")
    assert message["content"] is None


async def test_the_first_piece_of_a_streamed_call_has_arguments_as_openais_has(engine: Vllm) -> None:
    named = {"type": "function", "function": {"name": "f"}}
    chunks = await _chunks(engine, max_tokens=400, tools=[TOOL], tool_choice=named)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.choices]
    first = next(delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta)
    assert first["function"]["name"] == "f"
    assert isinstance(first["function"]["arguments"], str)


async def test_a_developers_message_is_read_as_the_systems(engine: Vllm) -> None:
    given = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (await _answer(engine, max_tokens=2, messages=given, **SAYS_BAB)).usage.completion_tokens == 2


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_longer_than_its_context_is_the_callers_to_mend(engine: Vllm, stream: bool) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await _chunks(engine, text="x" * (CONTEXT_TOKENS + 1), max_tokens=3, stream=stream)
    # What it names is no field of the request.
    assert caught.value.failure.param is None


async def test_a_limit_beyond_its_context_asks_for_a_bigger_model_too(engine: Vllm) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await _chunks(engine, max_tokens=CONTEXT_TOKENS + 1)
    assert caught.value.failure.param == "max_tokens"


async def test_a_field_of_the_wrong_type_is_the_callers_to_mend(engine: Vllm) -> None:
    with pytest.raises(UpstreamRefused, match="valid integer") as caught:
        await _chunks(engine, top_k="many")
    assert caught.value.failure.param == "top_k"
    assert "many" not in caught.value.failure.message


async def test_an_image_for_a_text_model_is_the_callers_to_mend(engine: Vllm) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    with pytest.raises(UpstreamRefused, match="not a multimodal model"):
        await _chunks(engine, messages=[{"role": "user", "content": [image]}])


async def test_embeddings_of_a_model_that_generates_are_refused(engine: Vllm) -> None:
    async with _played(engine) as played:
        with pytest.raises(UpstreamRefused):
            await played.provider.embed(played.call(stream=False, input="a"))


# --- hanging up, and the gauges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_that_is_left_is_generated_no_further(engine: Vllm, stream: bool, record_property: Note) -> None:
    async with _played(engine) as played:
        call, before = played.call(stream=stream, timeout_s=200, **LONG), engine.gauge("generation_tokens_total")
        task = asyncio.create_task(_read(played, call))
        await until(lambda: _runs(engine, 1, task), limit_s=60)
        task.cancel()
        left_s = time.monotonic()
        await asyncio.wait([task])
        await until(lambda: _runs(engine, 0), limit_s=LEFT_LIMIT_S)
    assert task.cancelled()
    assert engine.gauge("generation_tokens_total") - before < LONG["max_tokens"]
    record_property("seconds until it runs nothing", f"{time.monotonic() - left_s:.2f}")


async def _read(played: Played, call: Any) -> None:
    async for _ in played.provider.stream(call):
        pass


async def _runs(engine: Vllm, number: int, task: asyncio.Task[None] | None = None) -> bool:
    assert task is None or not task.done(), task
    return await asyncio.to_thread(engine.gauge, "num_requests_running") == number


async def test_a_probe_reads_its_running_and_waiting_requests(engine: Vllm) -> None:
    async with _played(engine) as played:
        call = played.call(timeout_s=200, **LONG)
        tasks = [asyncio.create_task(_read(played, call)) for _ in range(5)]
        await until(lambda: _runs(engine, 2), limit_s=60)
        found = await probe(played.backend, httpx.create_ssl_context(), SystemClock(), limit_s=30)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert found.succeeded
    assert (found.load.running, found.load.waiting) == (2, 3)
