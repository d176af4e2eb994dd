"""The llama.cpp provider against the real engine, with a tiny model of random weights."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.contracts import Chunk
from common.errors import ContextTooLong, UpstreamRefused
from tests.providers.stages import Played, backend
from tests.support.tiny_model import LlamaServer, write_model
from workers.answer import Answer
from workers.providers.registry import make
from workers.providers.transport import new_client

pytestmark = pytest.mark.timeout(60)

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """A real llama.cpp."""
    model = tmp_path_factory.mktemp("llamacpp") / "tiny.gguf"
    write_model(model)
    with LlamaServer(model) as running:
        yield running


@asynccontextmanager
async def _played(server: LlamaServer) -> AsyncGenerator[Played]:
    async with new_client() as client:
        yield Played(make("llamacpp", client), backend("llamacpp", server.url), None)


async def _chunks(server: LlamaServer, *, stream: bool = True, **body: Any) -> list[Chunk]:
    async with _played(server) as played:
        call = played.call(stream=stream, temperature=0, timeout_s=30, **body)
        return [chunk async for chunk in played.provider.stream(call)]


async def _answer(server: LlamaServer, **body: Any) -> Answer:
    answer = Answer()
    for chunk in await _chunks(server, **body):
        answer.add(chunk)
    return answer


async def test_a_stream_and_an_answer_in_one_piece_say_the_same(server: LlamaServer) -> None:
    streamed, whole = await _answer(server, max_tokens=20), await _answer(server, max_tokens=20, stream=False)
    one, other = (answer.result()["choices"][0] for answer in (streamed, whole))
    assert one["message"] == other["message"]
    assert len(one["message"]["content"].split()) == 20
    assert one["finish_reason"] == other["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
async def test_its_usage_is_told(server: LlamaServer, stream: bool) -> None:
    usage = (await _answer(server, max_tokens=7, stream=stream)).usage
    assert usage.completion_tokens == 7
    assert usage.prompt_tokens > 10
    assert "estimated" not in usage.details


async def test_the_newer_name_of_the_limit_is_understood(server: LlamaServer) -> None:
    assert (await _answer(server, max_completion_tokens=3)).usage.completion_tokens == 3


async def test_several_choices_each_have_a_role_and_an_end(server: LlamaServer) -> None:
    chunks = await _chunks(server, max_tokens=4, n=2)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]


@pytest.mark.parametrize("stream", [True, False])
async def test_log_probabilities_come_for_each_token(server: LlamaServer, stream: bool) -> None:
    answer = await _answer(server, max_tokens=3, logprobs=True, top_logprobs=2, stream=stream)
    entries = answer.result()["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2, 2, 2]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_longer_than_its_context_is_the_callers_to_mend(server: LlamaServer, stream: bool) -> None:
    with pytest.raises(ContextTooLong):
        await _chunks(server, text="word " * 900, max_tokens=3, stream=stream)


async def test_an_image_for_a_text_model_is_the_callers_to_mend(server: LlamaServer) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    with pytest.raises(UpstreamRefused) as caught:
        await _chunks(server, messages=[{"role": "user", "content": [image]}])
    assert caught.value.failure.param == "messages"


async def test_a_field_of_the_wrong_type_is_the_callers_to_mend(server: LlamaServer) -> None:
    with pytest.raises(UpstreamRefused, match="top_k"):
        await _chunks(server, top_k="many")


async def test_its_own_fields_pass_through(server: LlamaServer) -> None:
    forced = await _answer(server, max_tokens=8, grammar='root ::= "yes"')
    assert forced.result()["choices"][0]["message"]["content"] == "yes"


async def test_a_stream_that_is_left_frees_its_slot(server: LlamaServer) -> None:
    async with _played(server) as played:
        for _ in range(4):  # twice as many as it has slots, each far from its end
            chunks = played.provider.stream(played.call(max_tokens=400, timeout_s=30))
            await anext(chunks)
            await chunks.aclose()
    assert (await _answer(server, max_tokens=2)).usage.completion_tokens == 2
