"""A stream as its bytes: the head, each frame, keep-alives while nothing comes, and when the status goes out."""

from __future__ import annotations

import re
import socket

import httpx
import openai
import orjson
import pytest

from tests.journeys.conftest import STATUS_WAIT_S
from tests.support.fleet import Fleet
from tests.support.say import CHAT, chat, exchange, frames, messages, post_bytes, record, unchunked, when

pytestmark = pytest.mark.timeout(60)

FRAME = re.compile(rb"id: (\d+)-(\d+)\ndata: (\{[^\r\n]*\}|\[DONE\])\n\n")
KEEPALIVE = b": keep-alive\n"
HARD = "\r\n\r\ndata: [DONE]\r\n\nid: 9-9\rx\u2028\u2029\x85\x00é👩‍👩‍👧"


def test_the_head_says_that_this_is_a_stream_that_nobody_may_hold_back(fleet: Fleet) -> None:
    answer = exchange(fleet.members["gateway-0"].port, post_bytes(orjson.dumps(chat(stream=True, words="a b"))))
    assert answer.status == 200
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("cache-control") == "no-cache"
    assert answer.header("x-accel-buffering") == "no"
    assert answer.header("transfer-encoding") == "chunked"
    assert answer.header("content-length") is None and answer.header("server") is None
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.header("x-request-id") or "")
    assert re.fullmatch(r"job_default_[0-9a-f]{32}", answer.header("x-headrace-job-id") or "")


def test_every_byte_of_a_stream_is_accounted_for(fleet: Fleet) -> None:
    body = {**chat(stream=True, words=HARD), "stream_options": {"include_usage": True}}
    answer = exchange(fleet.members["gateway-0"].port, post_bytes(orjson.dumps(body)))
    payload = unchunked(answer.body)
    assert payload.startswith(b"retry: 1000\n")
    rest = payload.removeprefix(b"retry: 1000\n").replace(KEEPALIVE, b"")
    found = FRAME.findall(rest)
    assert b"".join(b"id: %b-%b\ndata: %b\n\n" % one for one in found) == rest
    assert len({fence for fence, _, _ in found}) == 1
    assert [int(number) for _, number, _ in found] == list(range(1, len(found) + 1))
    *events, done = [data for _, _, data in found]
    assert done == b"[DONE]"
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in map(orjson.loads, events[:-1])) == HARD


def test_a_write_never_ends_within_a_frame(fleet: Fleet) -> None:
    body = orjson.dumps(chat(stream=True, numbered=True, tokens=40, token_ms=3))
    answer = exchange(fleet.members["gateway-0"].port, post_bytes(body))
    pieces: list[bytes] = []
    rest = answer.body
    while (size := int(rest.partition(b"\r\n")[0], 16)) > 0:
        rest = rest.partition(b"\r\n")[2]
        pieces.append(rest[:size])
        rest = rest[size + 2 :]
    assert len(pieces) > 1
    assert all(piece.endswith(b"\n\n") or piece == KEEPALIVE for piece in pieces)


def test_a_stream_that_waits_in_the_queue_keeps_its_connection_alive_and_ends_with_a_word(
    fleet: Fleet, client: httpx.Client
) -> None:
    seen, cancelled = b"", False
    with client.stream("POST", CHAT, json=chat("unserved", stream=True, words="x")) as answer:
        assert answer.status_code == 200
        job_id = answer.headers["x-headrace-job-id"]
        assert record(client, job_id)["status"] == "queued"
        for piece in answer.iter_raw():
            seen += piece
            if not cancelled and seen.count(KEEPALIVE) >= 2:
                cancelled = True
                client.post(f"/v1/jobs/{job_id}/cancel")
    # Beside keep-alives it hears where it stands: single lines all of them, and no event before the last.
    head, _, _ = seen.partition(b"id: ") if b"id: " in seen else seen.partition(b"data: ")
    assert head.startswith(b"retry: 1000\n") and b"\n\n" not in head
    assert all(line.startswith((b": ", b"retry: ")) for line in head.splitlines())
    (end,) = frames(seen)
    assert end.json["error"]["code"] == "cancelled"
    assert b"[DONE]" not in seen
    assert when(client, job_id)["status"] == "cancelled"


def test_keep_alives_between_tokens_do_not_disturb_openais_client(sdk: openai.OpenAI) -> None:
    given = messages(text="one two", token_ms=2_500)
    with sdk.chat.completions.create(model="echo", messages=given, stream=True) as stream:
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said == "one two"


def test_the_status_waits_for_the_upstreams_refusal(client: httpx.Client) -> None:
    body = chat(stream=True, text="x", first_token_ms=STATUS_WAIT_S * 200, error="upstream_refused")
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == "upstream_refused"
    assert record(client, answer.headers["x-headrace-job-id"])["status"] == "failed"


def test_a_cancelled_job_that_nobody_got_a_token_of_is_a_status_too(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=chat("unserved", stream=True, words="x")) as waiting:
        job_id = waiting.headers["x-headrace-job-id"]
        client.post(f"/v1/jobs/{job_id}/cancel")
        again = client.get(f"/v1/jobs/{job_id}/events")
    assert again.status_code == 200
    assert frames(again.content)[-1].json["error"]["code"] == "cancelled"


def test_a_client_that_closes_its_half_is_still_answered(fleet: Fleet) -> None:
    body = orjson.dumps(chat(stream=True, numbered=True, tokens=5, token_ms=10))
    with socket.create_connection(("127.0.0.1", fleet.members["gateway-0"].port), timeout=10) as connection:
        connection.sendall(post_bytes(body))
        raw = b""
        while piece := connection.recv(65_536):
            raw += piece
    assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_many_streams_at_once_do_not_mix(fleet: Fleet) -> None:
    port = fleet.members["gateway-0"].port
    connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(30)]
    for number, connection in enumerate(connections):
        body = chat(stream=True, text=f"<{number}>", tokens=20, token_ms=2)
        connection.sendall(post_bytes(orjson.dumps(body)))
    for number, connection in enumerate(connections):
        raw = b""
        with connection:
            while piece := connection.recv(65_536):
                raw += piece
        said = re.findall(rb"<\d+>", raw)
        assert said == [b"<%d>" % number] * 20
