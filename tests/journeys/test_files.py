"""Files over HTTP: uploaded, listed, read to the byte, deleted, by OpenAI's own client and by others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.fleet import KEY, OTHER_KEY, Fleet
from tests.support.published import published

pytestmark = pytest.mark.timeout(60)

DATA = bytes(range(256)) * 3_000  # more than a chunk
LIMIT_BYTES = 200 * 1024 * 1024


@pytest.fixture
def other_sdk(fleet: Fleet) -> Iterator[openai.OpenAI]:
    """OpenAI's client with another tenant's key, at the other gateway."""
    with openai.OpenAI(api_key=OTHER_KEY, base_url=fleet.url(1) + "/v1", max_retries=0, timeout=20) as one:
        yield one


def test_a_file_comes_back_to_the_byte_from_any_gateway_and_is_gone_when_deleted(
    sdk: openai.OpenAI, elsewhere: httpx.Client
) -> None:
    made = sdk.files.create(file=("daten ü.bin", DATA), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(DATA),
        "daten ü.bin",
        "user_data",
        "processed",
    )
    shown = elsewhere.get(f"/v1/files/{made.id}")
    published("OpenAIFile").validate(shown.json())
    assert shown.json()["id"] == made.id and "expires_at" not in shown.json()
    content = elsewhere.get(f"/v1/files/{made.id}/content")
    assert content.content == DATA and content.headers["content-length"] == str(len(DATA))
    assert content.headers["content-type"] == "application/octet-stream"
    assert sdk.files.content(made.id).read() == DATA
    deleted = elsewhere.delete(f"/v1/files/{made.id}")
    published("DeleteFileResponse").validate(deleted.json())
    for answer in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError):
            answer(made.id)


def test_anthropics_clients_find_no_files_here(client: httpx.Client) -> None:
    head = {"anthropic-version": "2023-06-01"}
    file = ("a.txt", b"x", "text/plain")
    for answer in (
        client.get("/v1/files", headers=head),
        client.get("/v1/files/file-x/content", headers=head),
        client.post("/v1/files", headers=head, files={"file": file}),
        client.delete("/v1/files/file-x", headers=head),
    ):
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
        assert answer.headers["request-id"] == answer.json()["request_id"]
    assert client.get("/v1/files").json()["object"] == "list"


def test_files_of_another_tenant_are_as_if_they_never_were(sdk: openai.OpenAI, other_sdk: openai.OpenAI) -> None:
    made = sdk.files.create(file=("a", b"secret"), purpose="user_data")
    for answer in (other_sdk.files.retrieve, other_sdk.files.content, other_sdk.files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            answer(made.id)
        assert refused.value.type == "invalid_request_error"
    assert made.id not in [file.id for file in other_sdk.files.list()]
    with pytest.raises(openai.NotFoundError) as refused:
        other_sdk.files.list(after=made.id)
    assert refused.value.param == "after"
    assert sdk.files.content(made.id).read() == b"secret"
    sdk.files.delete(made.id)


def test_files_are_listed_in_pages_by_purpose_and_in_either_order(sdk: openai.OpenAI, client: httpx.Client) -> None:
    made = [sdk.files.create(file=(f"{number}", b"x"), purpose="vision").id for number in range(5)]
    page = client.get("/v1/files", params={"purpose": "vision", "limit": 2}).json()
    published("ListFilesResponse").validate(page)
    assert page["has_more"] and (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][1]["id"])
    for order in ("asc", "desc"):
        seen = [file.id for file in sdk.files.list(purpose="vision", limit=2, order=order)]
        assert sorted(seen) == sorted(made) and len(seen) == 5
    assert [file.id for file in sdk.files.list(purpose="assistants")] == []
    for file_id in made:
        sdk.files.delete(file_id)


def test_a_file_says_when_it_expires(sdk: openai.OpenAI) -> None:
    made = sdk.files.create(
        file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3_600}
    )
    assert made.expires_at == made.created_at + 3_600
    batch = sdk.files.create(file=("a", b"x"), purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 86_400


@pytest.mark.parametrize(
    ("words", "status", "param"),
    [
        ({"files": {"file": ("a", b"x")}}, 400, "purpose"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "nonsense"}}, 400, "purpose"),
        ({"files": {"other": ("a", b"x")}, "data": {"purpose": "batch"}}, 400, "file"),
        ({"files": {"file": (None, b"x")}, "data": {"purpose": "batch"}}, 400, "file"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "batch", "more": "y"}}, 400, "more"),
        ({"json": {"purpose": "batch"}}, 415, None),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 415, None),
    ],
)
def test_a_form_that_is_no_upload_is_refused_by_its_field(
    client: httpx.Client, words: dict[str, Any], status: int, param: str | None
) -> None:
    answer = client.post("/v1/files", **words)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    published("ErrorResponse").validate(answer.json())


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "order=up"])
def test_a_list_that_nobody_can_give_is_refused(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/v1/files?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])


def raw(fleet: Fleet, length_bytes: int, body: bytes) -> tuple[int, str]:
    """(status, error code) of the answer to an upload that says it is so long, and of which only so much comes."""
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length_bytes}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", fleet.members["gateway-0"].port), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_a_file_that_says_it_is_too_large_is_refused_before_it_is_read(fleet: Fleet) -> None:
    assert raw(fleet, LIMIT_BYTES + 1_000_000, b"") == (413, "request_too_large")


@pytest.mark.lengthy
def test_an_upload_that_stops_is_given_up_in_time(fleet: Fleet) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
    assert raw(fleet, 1_000, part) == (408, "request_timeout")


def test_a_page_of_another_site_cannot_upload_without_a_key(fleet: Fleet) -> None:
    form: dict[str, Any] = {"files": {"file": ("a", b"x")}, "data": {"purpose": "user_data"}}
    with httpx.Client(base_url=fleet.url(), trust_env=False, verify=False) as anybody:
        assert anybody.post("/v1/files", **form).status_code == 401
    with fleet.client() as client:
        assert client.post("/v1/files", headers={"origin": "http://elsewhere"}, **form).status_code == 200
