"""What every provider that speaks HTTP does with the connection and with the bytes on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from common.errors import UpstreamError, UpstreamProtocolError, UpstreamRefused, UpstreamUnreachable
from tests.providers.stages import DIALECTS, KEY, TOKENS, Played, Scene, play_over_http, replying
from tests.support.redis_server import free_port
from tests.support.runner import WAIT_LIMIT_S
from tests.support.upstream import HANG, Reply, Step, Upstream
from workers.answer import Answer
from workers.providers import gemini
from workers.providers.wire import MAX_LINE_BYTES

pytestmark = pytest.mark.parametrize("kind", DIALECTS)


async def _text(played: Played, *, stream: bool = True) -> str:
    answer = Answer()
    async for chunk in played.provider.stream(played.call(stream=stream)):
        answer.add(chunk)
    return answer.result()["choices"][0]["message"]["content"]


def _every(size: int) -> Callable[[bytes], list[bytes]]:
    return lambda whole: [whole[start : start + size] for start in range(0, len(whole), size)]


@pytest.mark.parametrize("size", [1, 7, 64, 1_000, 100_000])
async def test_half_an_event_does_not_break_decoding(kind: str, size: int) -> None:
    tokens = ("Grüße", " 🌊", " žluťoučký", " 水", ' "\\n\n"')
    async with play_over_http(kind, Scene(tokens=tokens, cut=_every(size))) as played:
        assert await _text(played) == "".join(tokens)


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
async def test_any_line_end_is_understood(kind: str, end: bytes) -> None:
    scene = Scene(cut=lambda whole: _every(50)(whole.replace(b"\n", end)))
    async with play_over_http(kind, scene) as played:
        assert await _text(played) == "".join(TOKENS)


async def test_bytes_that_are_not_utf_8_are_replaced(kind: str) -> None:
    scene = Scene(cut=lambda whole: [whole.replace(b" upon", b" \xff\xfeupon")])
    async with play_over_http(kind, scene) as played:
        assert await _text(played) == "Once \ufffd\ufffdupon a time"


async def test_an_event_that_is_not_json_is_an_error_without_its_text(kind: str) -> None:
    scene = Scene(
        cut=lambda whole: [whole.replace(b'"index":0', b'"index":canary').replace(b'"done":', b'"done"canary')]
    )
    async with play_over_http(kind, scene) as played:
        with pytest.raises(UpstreamProtocolError) as caught:
            await _text(played)
    assert "canary" not in str(caught.value)


async def test_a_giant_line_is_refused_before_it_is_whole(kind: str) -> None:
    most_bytes = gemini.MAX_LINE_BYTES if kind == "gemini" else MAX_LINE_BYTES
    async with _answering(kind, [b"data: {" + b" " * (most_bytes // 16) for _ in range(20)] + [HANG]) as played:
        with pytest.raises(UpstreamProtocolError, match=f" {most_bytes} bytes"):
            await _text(played)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_request_carries_the_key_and_no_more_than_it_should(kind: str, stream: bool) -> None:
    async with play_over_http(kind, Scene()) as played:
        await _text(played, stream=stream)
        assert played.upstream is not None
        request = played.upstream.requests[0]
    name, value = DIALECTS[kind].key
    assert request.headers[name] == value
    assert KEY not in request.path
    assert request.headers["x-request-id"] == "req-1"
    assert request.headers["accept-encoding"] == "identity"
    assert "their-model" in (request.json().get("model"), request.path.split("/")[-1].partition(":")[0])
    assert DIALECTS[kind].streams(request) is stream


async def test_a_connection_is_used_again_after_a_whole_answer(kind: str) -> None:
    async with play_over_http(kind, Scene()) as played:
        for stream in (True, False, True):
            await _text(played, stream=stream)
        assert played.upstream is not None
        assert played.upstream.connections == 1


async def test_an_answer_is_over_at_its_last_event_even_if_its_body_is_not(kind: str) -> None:
    dialect = DIALECTS[kind]
    steps = [*dialect.head, *map(dialect.token, TOKENS), *dialect.tail, HANG]
    async with _answering(kind, steps) as played:
        assert await _text(played) == "".join(TOKENS)
        assert played.upstream is not None
        await asyncio.wait_for(played.upstream.gone.wait(), WAIT_LIMIT_S)


async def test_no_cookie_is_kept(kind: str) -> None:
    whole = DIALECTS[kind].whole(TOKENS)
    reply = Reply([whole], content_type="application/json", headers={"set-cookie": "who=first; Path=/"})
    async with _replying(kind, reply) as played:
        await _text(played, stream=False)
        await _text(played, stream=False)
        assert played.upstream is not None
        assert all("cookie" not in request.headers for request in played.upstream.requests)


async def test_a_redirect_is_not_followed(kind: str) -> None:
    async with Upstream(lambda _: Reply([b"{}"])).running() as elsewhere:
        moved = Reply([b""], status=307, headers={"location": elsewhere.url})
        async with _replying(kind, moved) as played:
            with pytest.raises(UpstreamProtocolError, match="307"):
                await _text(played)
    assert elsewhere.requests == []


async def test_a_server_that_is_not_there_is_unreachable(kind: str) -> None:
    async with play_over_http(kind, Scene()) as played:
        nobody = f"http://127.0.0.1:{free_port()}"
        there = replace(played, backend=played.backend.model_copy(update={"base_url": nobody}))
        with pytest.raises(UpstreamUnreachable):
            await _text(there)


async def test_a_server_that_does_not_speak_http_breaks_the_protocol(kind: str) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server, play_over_http(kind, Scene()) as played:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(UpstreamProtocolError):
            await _text(replace(played, backend=played.backend.model_copy(update={"base_url": url})))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_with_status_200_is_an_error(kind: str, stream: bool) -> None:
    body = DIALECTS[kind].refusal(500, "it broke")
    async with _replying(kind, Reply([body], content_type="application/json")) as played:
        with pytest.raises(UpstreamError, match="it broke") as caught:
            await _text(played, stream=stream)
    assert type(caught.value) is UpstreamError


@pytest.mark.parametrize("body", [b"", b"<html>Welcome to nginx</html>", b"[]", b"{}", b"null", b"\x00\xff"])
@pytest.mark.parametrize("stream", [True, False])
async def test_status_200_without_an_answer_breaks_the_protocol(kind: str, stream: bool, body: bytes) -> None:
    async with _replying(kind, Reply([body] if body else [], content_type="text/html")) as played:
        with pytest.raises(UpstreamProtocolError):
            await _text(played, stream=stream)


@pytest.mark.parametrize("status", [400, 418, 429, 500, 503])
@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad gateway</html>", b"[]", b'{"error":null}', b'{"detail":[]}', b"\xff" * 200_000]
)
async def test_a_refusal_that_cannot_be_read_is_still_a_refusal(kind: str, status: int, body: bytes) -> None:
    async with _replying(kind, Reply([body] if body else [], status=status, content_type="text/html")) as played:
        with pytest.raises(UpstreamError) as caught:
            await _text(played)
    assert isinstance(caught.value, UpstreamRefused) == (status in (400, 418))
    assert str(caught.value)


def _replying(kind: str, reply: Reply) -> AbstractAsyncContextManager[Played]:
    return replying(kind, lambda _: reply)


def _answering(kind: str, steps: Sequence[Step]) -> AbstractAsyncContextManager[Played]:
    return _replying(kind, Reply(steps, content_type=DIALECTS[kind].content_type))
