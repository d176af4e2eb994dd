"""The llama.cpp provider against the real engine, with a tiny model of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from common.contracts import Chunk
from common.errors import ContextTooLong, UpstreamRefused
from tests.providers.stages import Played, backend
from tests.support.tiny_model import LlamaServer, write_model
from workers.answer import Answer
from workers.providers.registry import make

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """A real llama.cpp."""
    model = tmp_path_factory.mktemp("llamacpp") / "tiny.gguf"
    write_model(model)
    with LlamaServer(model) as running:
        yield running


@pytest.fixture
def played(server: LlamaServer, client: httpx.AsyncClient) -> Played:
    """It, ready to be called."""
    return Played(make("llamacpp", client), backend("llamacpp", server.url), None)


async def _chunks(played: Played, **body: Any) -> list[Chunk]:
    stream = body.pop("stream", True)
    return [
        chunk async for chunk in played.provider.stream(played.call(stream=stream, temperature=0, timeout_s=30, **body))
    ]


async def _answer(played: Played, **body: Any) -> Answer:
    answer = Answer()
    for chunk in await _chunks(played, **body):
        answer.add(chunk)
    return answer


async def test_a_stream_and_an_answer_in_one_piece_say_the_same(played: Played) -> None:
    streamed, whole = await _answer(played, max_tokens=20), await _answer(played, max_tokens=20, stream=False)
    one, other = (answer.result()["choices"][0] for answer in (streamed, whole))
    assert one["message"] == other["message"]
    assert len(one["message"]["content"].split()) == 20
    assert one["finish_reason"] == other["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
async def test_its_usage_is_told(played: Played, stream: bool) -> None:
    usage = (await _answer(played, max_tokens=7, stream=stream)).usage
    assert usage.completion_tokens == 7
    assert usage.prompt_tokens > 10
    assert "estimated" not in usage.details


async def test_the_newer_name_of_the_limit_is_understood(played: Played) -> None:
    assert (await _answer(played, max_completion_tokens=3)).usage.completion_tokens == 3


async def test_several_choices_each_have_a_role_and_an_end(played: Played) -> None:
    chunks = await _chunks(played, max_tokens=4, n=2)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]


@pytest.mark.parametrize("stream", [True, False])
async def test_log_probabilities_come_for_each_token(played: Played, stream: bool) -> None:
    answer = await _answer(played, max_tokens=3, logprobs=True, top_logprobs=2, stream=stream)
    entries = answer.result()["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2, 2, 2]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_longer_than_its_context_is_the_callers_to_mend(played: Played, stream: bool) -> None:
    with pytest.raises(ContextTooLong):
        await _chunks(played, text="word " * 900, max_tokens=3, stream=stream)


async def test_an_image_for_a_text_model_is_the_callers_to_mend(played: Played) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    with pytest.raises(UpstreamRefused) as caught:
        await _chunks(played, messages=[{"role": "user", "content": [image]}])
    assert caught.value.failure.param == "messages"


async def test_a_field_of_the_wrong_type_is_the_callers_to_mend(played: Played) -> None:
    with pytest.raises(UpstreamRefused, match="top_k"):
        await _chunks(played, top_k="many")


async def test_its_own_fields_pass_through(played: Played) -> None:
    forced = await _answer(played, max_tokens=2, grammar='root ::= "yes"')
    assert forced.result()["choices"][0]["message"]["content"] == "yes"


async def test_a_stream_that_is_left_frees_its_slot(played: Played) -> None:
    for _ in range(4):  # twice as many as it has slots, each far from its end
        chunks = played.provider.stream(played.call(max_tokens=400, ignore_eos=True, timeout_s=30))
        await anext(chunks)
        await chunks.aclose()
    assert (await _answer(played, max_tokens=2)).usage.completion_tokens == 2
