"""Bytes that no honest client sends: too many, of another type, packed, dripping, no HTTP. Each is answered or cut."""

from __future__ import annotations

import gzip
import socket
from typing import Any

import httpx
import orjson
import pytest

from tests.support.fleet import KEY, Fleet
from tests.support.say import CHAT, RawAnswer, chat, exchange, post_bytes

pytestmark = pytest.mark.timeout(60)

MIB = 1024 * 1024
HI: dict[str, Any] = chat(words="hi")


# --- sizes, types, encodings ------------------------------------------------------------------------------------------


def said(fleet: Fleet, request: bytes, **more: Any) -> RawAnswer:
    """What the first gateway answers to these bytes."""
    return exchange(fleet.members["gateway-0"].port, request, **more)


def code_of(answer: RawAnswer) -> str | None:
    body = orjson.loads(answer.body)
    return (body.get("error") or body).get("code")


@pytest.mark.parametrize("path", [CHAT, "/v1/jobs", "/prompt"])
def test_a_body_of_five_megabytes_is_too_large_and_the_connection_ends(fleet: Fleet, path: str) -> None:
    answer = said(fleet, post_bytes(b" " * 5 * MIB, path=path))
    assert (answer.status, code_of(answer), answer.closed) == (413, "request_too_large", True)


def test_a_length_that_is_too_large_is_refused_before_the_body_comes(fleet: Fleet) -> None:
    answer = said(fleet, post_bytes(b"", "content-length: 999999999999", length=False), until_closed=False)
    assert (answer.status, code_of(answer)) == (413, "request_too_large")


def test_chunks_without_end_are_cut_at_the_limit(fleet: Fleet) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = said(fleet, post_bytes(chunk * 90, "transfer-encoding: chunked", length=False))
    assert (answer.status, code_of(answer)) == (413, "request_too_large")


def test_a_body_just_below_the_limit_is_read(client: httpx.Client) -> None:
    words = "a" * (4 * MIB - 200)
    answer = client.post(CHAT, json=chat(words=words))
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, words)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_another_content_type_is_refused(fleet: Fleet, kind: str) -> None:
    answer = said(fleet, post_bytes(orjson.dumps(HI), f"content-type: {kind}"))
    assert (answer.status, code_of(answer)) == (415, "unsupported_media_type")


def test_a_page_of_another_site_can_not_send_a_body_without_a_type(fleet: Fleet) -> None:
    body = orjson.dumps(HI)
    assert said(fleet, post_bytes(body, "content-type:")).status == 200
    answer = said(fleet, post_bytes(body, "content-type:", "origin: https://elsewhere.example"))
    assert (answer.status, code_of(answer)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"])
def test_json_is_taken_however_it_is_written(fleet: Fleet, kind: str) -> None:
    assert said(fleet, post_bytes(orjson.dumps(HI), f"content-type: {kind}")).status == 200


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "gzip, gzip", "identity, gzip", "x"])
def test_a_compressed_body_is_refused(fleet: Fleet, coding: str) -> None:
    bomb = gzip.compress(b" " * MIB)
    answer = said(fleet, post_bytes(bomb, f"content-encoding: {coding}"))
    assert (answer.status, code_of(answer)) == (415, "unsupported_media_type")


# --- the wire ---------------------------------------------------------------------------------------------------------

WIRE: dict[str, tuple[bytes, int]] = {
    "two lengths": (post_bytes(b"{}", "content-length: 1"), 400),
    "length and chunks": (post_bytes(b"0\r\n\r\n", "transfer-encoding: chunked"), 400),
    "a length that is none": (post_bytes(b"", "content-length: x", length=False), 400),
    "a negative length": (post_bytes(b"", "content-length: -1", length=False), 400),
    "a length with a plus": (post_bytes(b"{}", "content-length: +2", length=False), 400),
    "a bad chunk": (post_bytes(b"zz\r\n{}\r\n0\r\n\r\n", "transfer-encoding: chunked", length=False), 400),
    "a folded header": (post_bytes(b"{}", "x-a: b\r\n c"), 400),
    "a space before the colon": (post_bytes(b"{}", "x-a : b"), 400),
    "a header without a colon": (post_bytes(b"{}", "nonsense"), 400),
    "a NUL in a header": (post_bytes(b"{}", "x-a: \x00"), 400),
    "a Host with a path": (post_bytes(b"{}", "host: a/b"), 400),
    "a Host with a query": (post_bytes(b"{}", "host: a?b"), 400),
    "a Host with a fragment": (post_bytes(b"{}", "host: a#b"), 400),
    "a Host with a user": (post_bytes(b"{}", "host: u@a"), 400),
    "an empty Host": (post_bytes(b"{}", "host:"), 400),
    "two Hosts": (post_bytes(b"{}", "host: a", "host: b"), 400),
    "no Host": (b"GET /v1/models HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
    "large headers": (post_bytes(b"{}", "x-a: " + "a" * 20_000), 431),
    "many headers": (post_bytes(b"{}", *(f"x-{number}: y" for number in range(2_000))), 431),
    "a long address": (post_bytes(b"{}", path="/" + "a" * 20_000), 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "another protocol": (b"SSH-2.0-x\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "a later version": (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", WIRE)
def test_what_is_no_sound_http_is_refused_and_the_connection_ends(fleet: Fleet, name: str) -> None:
    request, status = WIRE[name]
    answer = said(fleet, request)
    assert answer.status == status, (answer.status, answer.body)
    assert answer.closed


def test_no_second_request_is_read_out_of_a_refused_ones_body(fleet: Fleet) -> None:
    hidden = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
    for request in (
        post_bytes(b"0\r\n\r\n" + hidden, "transfer-encoding: chunked").replace(b"connection: close\r\n", b""),
        post_bytes(hidden, "content-length: 0").replace(b"connection: close\r\n", b""),
        post_bytes(hidden, "content-encoding: gzip").replace(b"connection: close\r\n", b""),
        post_bytes(hidden, "host: a/b").replace(b"connection: close\r\n", b""),
    ):
        answer = said(fleet, request)
        assert 400 <= answer.status < 500
        assert answer.closed and b"HTTP/1.1" not in answer.body and b'"list"' not in answer.body


def test_a_body_that_never_comes_is_a_timeout(fleet: Fleet) -> None:
    answer = said(fleet, post_bytes(b'{"model":', "content-length: 500", length=False))
    assert (answer.status, code_of(answer), answer.closed) == (408, "request_timeout", True)


def test_a_body_that_drips_is_a_timeout_too(fleet: Fleet) -> None:
    with socket.create_connection(("127.0.0.1", fleet.members["gateway-0"].port), timeout=0.2) as connection:
        connection.sendall(post_bytes(b"", "content-length: 100000", length=False))
        raw = b""
        for _ in range(100):
            try:
                connection.sendall(b" ")
                raw += connection.recv(4_096)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if raw:
                break
    assert raw.startswith(b"HTTP/1.1 408 ")


def test_other_methods_and_strange_addresses_are_refused(fleet: Fleet) -> None:
    for first in ("TRACE / HTTP/1.1", "CONNECT a:1 HTTP/1.1", "FOO /v1/models HTTP/1.1", "PUT /v1/jobs HTTP/1.1"):
        assert 400 <= said(fleet, f"{first}\r\nhost: x\r\nconnection: close\r\n\r\n".encode()).status < 500, first
    for path in ("/%00", "/v1/%2e%2e/", "/..", "//x", "/v1/jobs/%0d%0aset-cookie:x", "*", "http://evil/v1/jobs", "/%"):
        answer = said(fleet, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert 400 <= answer.status < 500, path
        assert answer.header("set-cookie") is None
