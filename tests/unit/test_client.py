"""The commands' HTTP client: following a job over broken connections, finding its gateway, wording refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.clock import SystemClock
from deploy.local.client import GatewayClient, find_gateway, refusal, result_text, text_of
from deploy.local.embedded import free_port
from deploy.local.trouble import Exit, Trouble

JOB = "job_default_0123456789abcdef0123456789abcdef"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class Impatient(SystemClock):
    """A clock on which no wait takes time, and which counts the waits."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        await asyncio.sleep(0)


class Script:
    """A gateway that answers one connection after the other with set bytes and then hangs up."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.asked_after: list[str] = []

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        after = [line.partition(":")[2].strip() for line in head.splitlines() if line.startswith("last-event-id:")]
        self.asked_after.append(after[0] if after else "")
        writer.write(self._answers.pop(0))
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[GatewayClient]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, GatewayClient(f"http://127.0.0.1:{port}", None, Impatient()) as client:
            yield client


def frame(position: str, data: str) -> bytes:
    return f"id: {position}\ndata: {data}\n\n".encode()


async def test_following_goes_on_after_the_last_whole_event_when_the_connection_breaks() -> None:
    script = Script(
        HEAD + frame("9-1", "a") + frame("9-2", "b")[:-1],
        HEAD + frame("9-2", "b"),
        HEAD + frame("9-3", "c") + frame("9-4", "[DONE]"),
    )
    async with script.serving() as client:
        assert [event.data async for event in client.follow(JOB)] == ["a", "b", "c"]
    assert script.asked_after == ["", "9-1", "9-2"]


async def test_following_waits_out_a_gateway_that_is_away_for_a_moment() -> None:
    away = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    script = Script(away, HEAD + frame("9-1", "a") + frame("9-2", "[DONE]"))
    async with script.serving() as client:
        assert [event.data async for event in client.follow(JOB)] == ["a"]


async def test_following_a_finished_job_past_its_end_is_over_at_once() -> None:
    script = Script(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
    async with script.serving() as client:
        assert [event async for event in client.follow(JOB, after="9-4")] == []
    assert script.asked_after == ["9-4"]


async def test_an_error_event_is_the_last_that_following_gives() -> None:
    error = json.dumps({"error": {"message": "broke off", "code": "upstream_interrupted"}}, separators=(",", ":"))
    script = Script(HEAD + frame("9-1", "a") + frame("9-2", error))
    async with script.serving() as client:
        assert [event.data async for event in client.follow(JOB)] == ["a", error]


async def test_a_refusal_that_will_not_pass_is_not_asked_for_again() -> None:
    body = b'{"error": {"message": "There is no job by that id."}}'
    answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
    script = Script(answer)
    async with script.serving() as client:
        with pytest.raises(Trouble, match=r"404.*no job by that id"):
            _ = [event async for event in client.follow(JOB)]
    assert len(script.asked_after) == 1


async def test_following_gives_up_after_trying_for_a_while_and_says_what_to_do() -> None:
    clock = Impatient()
    async with GatewayClient(f"http://127.0.0.1:{free_port()}", None, clock) as client:
        with pytest.raises(Trouble, match="just up") as raised:
            _ = [event async for event in client.follow(JOB)]
    assert raised.value.code == Exit.UNAVAILABLE
    assert clock.waits_s == sorted(clock.waits_s)
    assert sum(clock.waits_s) > 10


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error": {"message": "Incorrect API key."}}', "Incorrect API key.; pass --key"),
        (404, b'{"title": "Not found", "detail": "No such page."}', "No such page."),
        (502, b"<html>bad gateway</html>", "<html>bad gateway</html>"),
        (500, b'["unexpected"]', "unexpected"),
    ],
)
def test_a_refusal_is_told_in_the_servers_own_words(status: int, body: bytes, words: str) -> None:
    assert words in str(refusal(status, body))


def test_the_text_of_an_answer_is_found_in_every_shape() -> None:
    assert text_of({"choices": [{"delta": {"content": "hi"}}]}) == "hi"
    assert text_of({"choices": [{"delta": {"role": "assistant", "content": None}}]}) == ""
    assert text_of({"choices": [{"text": "hi"}]}) == "hi"
    assert text_of({"choices": [], "usage": {}}) == ""
    assert result_text({"result": {"choices": [{"message": {"content": "hello"}}]}}) == "hello"
    assert result_text({"result": None}) == ""


def test_a_gateway_told_by_name_does_not_get_the_key_of_the_one_that_runs_here(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"url": "http://127.0.0.1:9000", "key": "sk-of-up-0123456789"}))
    assert find_gateway(None, None, tmp_path) == ("http://127.0.0.1:9000", "sk-of-up-0123456789")
    assert find_gateway("http://127.0.0.1:9000/v1/", None, tmp_path) == ("http://127.0.0.1:9000", "sk-of-up-0123456789")
    assert find_gateway("http://elsewhere:8080/v1", None, tmp_path) == ("http://elsewhere:8080", None)
    assert find_gateway("http://elsewhere:8080", "sk-mine", tmp_path) == ("http://elsewhere:8080", "sk-mine")


def test_without_anything_told_the_gateway_is_on_the_default_port(tmp_path: Path) -> None:
    assert find_gateway(None, None, tmp_path) == ("http://127.0.0.1:8080", None)
