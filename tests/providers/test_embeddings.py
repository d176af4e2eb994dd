"""Embeddings of every kind of server: recorded bytes of all, and the real llama.cpp with a tiny model."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from struct import pack
from typing import Any

import orjson
import pytest

from common.clock import SystemClock
from common.errors import (
    ContextTooLong,
    HeadraceError,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.providers.stages import DIALECTS, KEY, PROMPT, Played, backend, replying
from tests.support.runner import WAIT_LIMIT_S
from tests.support.tiny_model import LlamaServer, write_model
from tests.support.upstream import BREAK, HANG, Reply, Request
from workers.providers.base import Call, Embedded
from workers.providers.echo import EchoProvider
from workers.providers.registry import make
from workers.providers.transport import new_client
from workers.providers.vectors import unpack

pytestmark = pytest.mark.timeout(60)

OVER_HTTP = ("openai", "vllm", "llamacpp", "ollama", "gemini", "cohere")
OPENAIS = OVER_HTTP[:3]
FIRST, SECOND = (0.5, -0.25, 1.0), (0.125, 0.75, -2.0)


def call(played: Played, given: Any = PROMPT, *, timeout_s: float = 8, **more: Any) -> Call:
    body = {"model": "our-model", "input": given, **more}
    return Call(played.backend, "/v1/embeddings", "their-model", body, False, timeout_s, KEY, "req-1")


def in_base64(numbers: tuple[float, ...]) -> str:
    return b64encode(pack(f"<{len(numbers)}f", *numbers)).decode()


def openai_answer(*embeddings: Any, usage: Any = True) -> bytes:
    """As OpenAI answers, shortened."""
    data = [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(embeddings)]
    told = {"prompt_tokens": 8, "total_tokens": 8} if usage is True else usage
    return orjson.dumps({"object": "list", "data": data, "model": "text-embedding-3-small", "usage": told})


def ollama_answer(*embeddings: Any) -> bytes:
    """As Ollama answers, shortened."""
    times = {"total_duration": 14143917, "load_duration": 1019500, "prompt_eval_count": 8}
    return orjson.dumps({"model": "all-minilm", "embeddings": embeddings, **times})


def gemini_answer(*embeddings: Any) -> bytes:
    """As Gemini answers: without usage."""
    return orjson.dumps({"embeddings": [{"values": one} for one in embeddings]})


def cohere_answer(*embeddings: Any) -> bytes:
    """As Cohere answers, shortened."""
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 8.0}}
    return orjson.dumps({"id": "x", "embeddings": {"float": embeddings}, "texts": [], "meta": meta})


NATIVE = {"ollama": ollama_answer, "gemini": gemini_answer, "cohere": cohere_answer}
PATHS = {
    "ollama": "/api/embed",
    "gemini": "/v1beta/models/their-model:batchEmbedContents",
    "cohere": "/v2/embed",
}


def answer_of(kind: str, *embeddings: tuple[float, ...]) -> bytes:
    if kind in NATIVE:
        return NATIVE[kind](*embeddings)
    return openai_answer(*[in_base64(one) for one in embeddings])


def saying(kind: str, body: bytes, status: int = 200, **headers: str) -> AbstractAsyncContextManager[Played]:
    reply = Reply([body], status=status, content_type="application/json", headers=headers)
    return replying(kind, lambda _: reply)


def numbers(embedded: Embedded) -> list[tuple[float, ...]]:
    return [unpack(vector) for vector in embedded.vectors]


def sent(played: Played) -> Request:
    assert played.upstream is not None
    return played.upstream.requests[0]


# --- every kind that speaks HTTP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OVER_HTTP)
async def test_each_input_has_its_vector_and_usage_is_told(kind: str) -> None:
    async with saying(kind, answer_of(kind, FIRST, SECOND)) as played:
        embedded = await played.provider.embed(call(played, ["one", "two"]))
    assert numbers(embedded) == [FIRST, SECOND]
    if kind == "gemini":
        assert embedded.usage is None
        return
    assert embedded.usage is not None
    assert (embedded.usage.prompt_tokens, embedded.usage.completion_tokens) == (8, 0)


@pytest.mark.parametrize("kind", OPENAIS)
async def test_a_server_that_only_knows_numbers_may_send_those(kind: str) -> None:
    async with saying(kind, openai_answer([0.5, -0.25, 1], [0.125, 0.75, -2])) as played:
        assert numbers(await played.provider.embed(call(played, ["one", "two"]))) == [FIRST, SECOND]


@pytest.mark.parametrize("kind", OPENAIS)
async def test_the_index_tells_the_order(kind: str) -> None:
    document = orjson.loads(openai_answer(in_base64(FIRST), in_base64(SECOND)))
    document["data"].reverse()
    async with saying(kind, orjson.dumps(document)) as played:
        assert numbers(await played.provider.embed(call(played, ["one", "two"]))) == [FIRST, SECOND]


@pytest.mark.parametrize("kind", OVER_HTTP)
async def test_the_request_carries_what_the_server_knows(kind: str) -> None:
    async with saying(kind, answer_of(kind, FIRST)) as played:
        await played.provider.embed(call(played, ["one"], dimensions=3, encoding_format="float", user=None))
        request = sent(played)
    assert request.path == PATHS.get(kind, "/v1/embeddings")
    name, value = DIALECTS[kind].key
    assert request.headers[name] == value
    body = request.json()
    assert body == EXPECTED[kind if kind in NATIVE else "openai"]


EXPECTED: dict[str, Any] = {
    "openai": {"model": "their-model", "input": ["one"], "dimensions": 3, "encoding_format": "base64"},
    "ollama": {"model": "their-model", "input": ["one"], "dimensions": 3, "truncate": False, "options": {}},
    "gemini": {
        "requests": [
            {"model": "models/their-model", "content": {"parts": [{"text": "one"}]}, "outputDimensionality": 3}
        ]
    },
    "cohere": {
        **{"model": "their-model", "texts": ["one"], "input_type": "search_document", "embedding_types": ["float"]},
        **{"truncate": "NONE", "output_dimension": 3},
    },
}


@pytest.mark.parametrize(
    ("kind", "key", "field"), [("gemini", "task_type", "taskType"), ("cohere", "input_type", "input_type")]
)
async def test_what_the_texts_are_for_is_the_callers_to_say_and_else_the_backends(
    kind: str, key: str, field: str
) -> None:
    reply = Reply([answer_of(kind, FIRST)], content_type="application/json")
    async with replying(kind, lambda _: reply, options={key: "of-the-backend"}) as played:
        asked: dict[str, Any] = {key: "of-the-caller"}
        await played.provider.embed(call(played, ["one"], **asked))
        await played.provider.embed(call(played, ["one"]))
        assert played.upstream is not None
        bodies = [request.json() for request in played.upstream.requests]
    said = [body["requests"][0] if kind == "gemini" else body for body in bodies]
    assert [body[field] for body in said] == ["of-the-caller", "of-the-backend"]


@pytest.mark.parametrize(("kind", "most"), [("gemini", 100), ("cohere", 96)])
async def test_more_texts_than_one_call_takes_go_in_several(kind: str, most: int) -> None:
    def answer(request: Request) -> Reply:
        body = request.json()
        texts = body["texts"] if kind == "cohere" else [one["content"]["parts"][0]["text"] for one in body["requests"]]
        return Reply([answer_of(kind, *[(float(text), 1.0) for text in texts])], content_type="application/json")

    async with replying(kind, answer) as played:
        embedded = await played.provider.embed(call(played, [str(number) for number in range(2 * most + 1)]))
        assert played.upstream is not None
        assert len(played.upstream.requests) == 3
    assert [vector[0] for vector in numbers(embedded)] == [float(number) for number in range(2 * most + 1)]
    if kind == "cohere":
        assert embedded.usage is not None
        assert embedded.usage.prompt_tokens == 24


async def test_several_calls_have_one_time_limit_together() -> None:
    answer = Reply([answer_of("cohere", *[FIRST] * 96)], content_type="application/json")
    async with replying("cohere", lambda _: answer) as played:
        with pytest.raises(UpstreamTimeout):  # each of the thousand is answered in far less, and all of them never
            await played.provider.embed(call(played, ["one"] * 96_000, timeout_s=0.1))


async def test_anthropic_makes_no_embeddings() -> None:
    async with saying("anthropic", b"{}") as played:
        with pytest.raises(UpstreamRefused):
            await played.provider.embed(call(played))


@pytest.mark.parametrize(("kind", "passes"), [("openai", False), ("vllm", True), ("llamacpp", True)])
async def test_unknown_fields_go_only_to_servers_of_ones_own(kind: str, passes: bool) -> None:
    async with saying(kind, answer_of(kind, FIRST)) as played:
        await played.provider.embed(call(played, "one", truncate_prompt_tokens=5, api_base="x", embed_dtype="float16"))
        body = sent(played).json()
    assert ("truncate_prompt_tokens" in body) is passes
    assert "api_base" not in body
    assert "embed_dtype" not in body  # how numbers are written is not the caller's to say here


async def test_ollamas_options_and_life_are_the_backends() -> None:
    reply = Reply([ollama_answer(FIRST)], content_type="application/json")
    options = {"num_ctx": 2048, "keep_alive": "5m"}
    async with replying("ollama", lambda _: reply, options=options) as played:
        await played.provider.embed(call(played, "one"))
        body = sent(played).json()
    assert (body["options"], body["keep_alive"]) == ({"num_ctx": 2048}, "5m")


@pytest.mark.parametrize("kind", NATIVE)
async def test_what_takes_texts_takes_no_tokens(kind: str) -> None:
    async with saying(kind, answer_of(kind, FIRST)) as played:
        with pytest.raises(UpstreamRefused) as caught:
            await played.provider.embed(call(played, [[1, 2]]))
    assert caught.value.failure.param == "input"


def _without(field: str) -> Callable[[], bytes]:
    def made() -> bytes:
        document = orjson.loads(openai_answer([1.0]))
        del document[field]
        return orjson.dumps(document)

    return made


@pytest.mark.parametrize("kind", OPENAIS)
@pytest.mark.parametrize(
    "body",
    [
        openai_answer(),
        openai_answer([1.0]),
        openai_answer([1.0], [1.0], [1.0]),
        openai_answer([1.0], [1.0, 2.0]),
        openai_answer([], []),
        openai_answer(["a"], ["b"]),
        openai_answer([None], [None]),
        openai_answer([1e300], [1.0]),
        openai_answer("not base64", "AAAA"),
        openai_answer("AAA=", "AAA="),
        openai_answer(in_base64((float("nan"),)), in_base64((1.0,))),
        openai_answer(in_base64((float("inf"),)), in_base64((1.0,))),
        openai_answer(7, 8),
        openai_answer([1.0], [2.0]).replace(b'"index":1', b'"index":0'),
        openai_answer([1.0], [2.0]).replace(b'"index":1', b'"index":5'),
        openai_answer([1.0], [2.0]).replace(b'"index":1', b'"index":"1"'),
        _without("data")(),
        b'{"data":{}}',
        b'{"data":[1,2]}',
        b"[]",
        b"no json",
    ],
)
async def test_what_is_no_embedding_for_each_input_is_an_error(kind: str, body: bytes) -> None:
    async with saying(kind, body) as played:
        with pytest.raises(UpstreamProtocolError):
            await played.provider.embed(call(played, ["one", "two"]))


@pytest.mark.parametrize(
    "body",
    [ollama_answer(), ollama_answer(FIRST), ollama_answer([], []), ollama_answer("a", "b"), b'{"embeddings":7}', b"{}"],
)
async def test_what_is_no_embedding_of_ollamas_is_an_error(body: bytes) -> None:
    async with saying("ollama", body) as played:
        with pytest.raises(UpstreamProtocolError):
            await played.provider.embed(call(played, ["one", "two"]))


@pytest.mark.parametrize(
    "body",
    [gemini_answer(), gemini_answer(FIRST), gemini_answer([], []), gemini_answer("a", "b"), b'{"embeddings":[7,8]}'],
)
async def test_what_is_no_embedding_of_geminis_is_an_error(body: bytes) -> None:
    async with saying("gemini", body) as played:
        with pytest.raises(UpstreamProtocolError):
            await played.provider.embed(call(played, ["one", "two"]))


@pytest.mark.parametrize(
    "body",
    [
        cohere_answer(),
        cohere_answer(FIRST),
        cohere_answer([], []),
        cohere_answer("a", "b"),
        b'{"embeddings":[]}',
        b"{}",
    ],
)
async def test_what_is_no_embedding_of_coheres_is_an_error(body: bytes) -> None:
    async with saying("cohere", body) as played:
        with pytest.raises(UpstreamProtocolError):
            await played.provider.embed(call(played, ["one", "two"]))


@pytest.mark.parametrize("kind", OVER_HTTP)
async def test_a_vector_of_another_length_than_asked_for_is_refused(kind: str) -> None:
    async with saying(kind, answer_of(kind, FIRST)) as played:
        with pytest.raises(UpstreamRefused) as caught:
            await played.provider.embed(call(played, "one", dimensions=2))
    assert caught.value.failure.param == "dimensions"


@pytest.mark.parametrize("kind", OPENAIS)
@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1}, "many"])
async def test_usage_that_cannot_be_is_none(kind: str, usage: Any) -> None:
    async with saying(kind, openai_answer([1.0], usage=usage)) as played:
        assert (await played.provider.embed(call(played, "one"))).usage is None


@pytest.mark.parametrize("kind", OVER_HTTP)
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, UpstreamRefused),
        (401, UpstreamCredentials),
        (404, UpstreamRefused),
        (429, UpstreamBusy),
        (500, UpstreamError),
        (501, UpstreamRefused),
        (504, UpstreamTimeout),
    ],
)
async def test_each_refusal_is_our_error_and_tells_no_secret(
    kind: str, status: int, error: type[HeadraceError], caplog: pytest.LogCaptureFixture
) -> None:
    text = f"No: {KEY} may not ask '{PROMPT}' at http://10.0.0.1:8000/v1"
    body = orjson.loads(DIALECTS[kind].refusal(status, text))
    with caplog.at_level(logging.DEBUG):
        async with saying(kind, orjson.dumps(body), status) as played:
            with pytest.raises(error) as caught:
                await played.provider.embed(call(played, [PROMPT, "another"]))
    for secret in (KEY, PROMPT, "10.0.0.1"):
        assert secret not in str(caught.value) + caplog.text


@pytest.mark.parametrize("kind", OVER_HTTP)
async def test_a_connection_that_breaks_is_an_unreachable_server(kind: str) -> None:
    async with replying(kind, lambda _: Reply([b"{", BREAK], content_type="application/json")) as played:
        with pytest.raises((UpstreamUnreachable, UpstreamProtocolError)):
            await played.provider.embed(call(played))


@pytest.mark.parametrize("kind", OVER_HTTP)
async def test_silence_ends_with_the_calls_time(kind: str) -> None:
    async with replying(kind, lambda _: Reply([HANG])) as played:
        with pytest.raises(UpstreamTimeout):
            await played.provider.embed(call(played, timeout_s=0.1))


@pytest.mark.parametrize("kind", OVER_HTTP)
async def test_cancelling_closes_the_connection(kind: str) -> None:
    asked = asyncio.Event()

    def hang(_: Request) -> Reply:
        asked.set()
        return Reply([HANG])

    async with replying(kind, hang) as played:
        upstream = played.upstream
        assert upstream is not None
        task = asyncio.create_task(played.provider.embed(call(played)))
        await asked.wait()
        task.cancel()
        async with asyncio.timeout(WAIT_LIMIT_S):
            await upstream.gone.wait()
        assert upstream.open == 0


# --- echo -------------------------------------------------------------------------------------------------------------


async def embedded_by_echo(given: Any, *, timeout_s: float = 8, **more: Any) -> Embedded:
    played = Played(EchoProvider(SystemClock()), backend("echo"), None)
    return await played.provider.embed(call(played, given, timeout_s=timeout_s, **more))


async def test_echo_gives_the_same_input_the_same_vector_of_length_one() -> None:
    first, second = numbers(await embedded_by_echo(["one", "two"]))
    assert numbers(await embedded_by_echo("one")) == [first]
    assert first != second
    assert sum(number * number for number in first) == pytest.approx(1, abs=1e-5)
    assert len(first) == 16


async def test_echo_heeds_dimensions_and_counts_words_and_tokens() -> None:
    embedded = await embedded_by_echo(["one two", "three"], dimensions=7)
    assert [len(vector) for vector in numbers(embedded)] == [7, 7]
    assert embedded.usage is not None
    assert embedded.usage.prompt_tokens == 3
    of_tokens = await embedded_by_echo([[1, 2], [3]])
    assert of_tokens.usage is not None
    assert of_tokens.usage.prompt_tokens == 3


async def test_echo_fails_as_an_inputs_script_says() -> None:
    with pytest.raises(UpstreamBusy) as caught:
        await embedded_by_echo(["fine", 'echo: {"error": "upstream_busy", "retry_after_s": 3}'])
    assert caught.value.failure.retry_after_s == 3
    with pytest.raises(UpstreamRefused) as refused:
        await embedded_by_echo(['echo: {"tokens": "many"}'])
    assert refused.value.failure.param == "input"


async def test_echo_hangs_until_the_calls_time_is_over() -> None:
    with pytest.raises(UpstreamTimeout):
        await embedded_by_echo('echo: {"hang_at": 0}', timeout_s=0.05)


# --- the real llama.cpp -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """A real llama.cpp that makes embeddings."""
    model = tmp_path_factory.mktemp("llamacpp-embeddings") / "tiny.gguf"
    write_model(model)
    with LlamaServer(model, embeddings=True) as running:
        yield running


@asynccontextmanager
async def real(server: LlamaServer) -> AsyncGenerator[Played]:
    async with new_client() as client:
        yield Played(make("llamacpp", client), backend("llamacpp", server.url), None)


async def test_a_real_server_embeds_several_as_it_embeds_each(server: LlamaServer) -> None:
    async with real(server) as played:
        both = numbers(await played.provider.embed(call(played, ["herons wade", "gulls dive"], timeout_s=30)))
        each = [
            numbers(await played.provider.embed(call(played, text, timeout_s=30)))[0]
            for text in ("herons wade", "gulls dive")
        ]
    assert both[0] != both[1]
    for one, other in zip(both, each, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


async def test_a_real_server_counts_texts_and_takes_tokens(server: LlamaServer) -> None:
    async with real(server) as played:
        told = (await played.provider.embed(call(played, [[1, 5, 6], [1, 7]], timeout_s=30))).usage
        assert told is not None
        assert told.prompt_tokens == 5
        with pytest.raises(UpstreamRefused):
            await played.provider.embed(call(played, [[1, 99_999]], timeout_s=30))


async def test_a_real_servers_limit_is_the_callers_to_heed(server: LlamaServer) -> None:
    async with real(server) as played:
        with pytest.raises(ContextTooLong) as caught:
            await played.provider.embed(call(played, ["short", "word " * 300], timeout_s=30))
    assert caught.value.failure.param == "input"


async def test_a_real_server_that_knows_no_dimensions_is_not_believed(server: LlamaServer) -> None:
    async with real(server) as played:
        with pytest.raises(UpstreamRefused, match="64"):
            await played.provider.embed(call(played, "herons", dimensions=8, timeout_s=30))
