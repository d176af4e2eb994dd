"""Responses in the test's own process: what is worked on beside the loop, and how much; what HTTP wants of routes."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
import orjson
import pytest

from common.contracts import Outcome, State, Usage
from common.keys import lane_name
from common.queue import Settlement
from gateway.dialects.responses_reference import MOST_READ_BODIES
from gateway.main import build
from gateway.parts import Parts
from tests.support.fleet import KEY
from tests.support.inside import opened
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL

pytestmark = pytest.mark.either_server

PATH: Final = "/v1/responses"
SAID: Final = {"role": "assistant", "content": "hello", "refusal": None}
ANSWER: Final = orjson.dumps({"choices": [{"index": 0, "message": SAID, "finish_reason": "stop", "logprobs": None}]})
WON: Final = Settlement(Outcome(State.SUCCEEDED, "stop", Usage(3, 4)), result=ANSWER)
ANEW: Final = {"date", "x-request-id", "openai-processing-ms"}
MODULES: Final = ("responses_turns", "responses_listed", "responses_output")


@asynccontextmanager
async def site(server: RedisServer, place: Path, **more: float) -> AsyncGenerator[tuple[Parts, httpx.AsyncClient]]:
    """The whole application without a socket, nothing of which runs by itself, and a client of it."""
    async with opened(server, place, api_keys=KEY, data_dir=str(place), **more) as parts:
        transport = httpx.ASGITransport(build(parts))
        keyed = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=keyed) as client:
            yield parts, client
        await parts.database.close()


async def queued(client: httpx.AsyncClient, given: Any, **more: Any) -> str:
    """A response that waits for a worker, of which there is none."""
    answer = await client.post(PATH, json={"model": "echo", "input": given, "background": True, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


async def answered(parts: Parts, response: str) -> str:
    """The response, which was queued, with its answer."""
    job_id = "job_" + response.removeprefix("resp_")
    record = await parts.queue.get(job_id)
    assert record is not None
    await parts.queue.beat(POOL, "w", lease_s=15, info={}, register=True)
    lanes = (lane_name(record.job.priority, "echo"),)
    for claim in await parts.queue.claim(POOL, "w", most=9, lanes=lanes) or ():
        await parts.queue.finish(claim, "w", WON if claim.job.id == job_id else replace(WON, result=b""))
    return response


def named(response: str, place: str) -> dict[str, str]:
    """A reference to one of its items."""
    return {"type": "item_reference", "id": f"msg_{response[-32:]}_{place}"}


@contextmanager
def watched() -> Generator[set[tuple[bool, str]]]:
    """The functions of those modules that are called meanwhile, each with whether it was in this thread."""
    seen: set[tuple[bool, str]] = set()
    here = threading.get_ident()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.rpartition("/")[2].removesuffix(".py") in MODULES:
            seen.add((threading.get_ident() == here, frame.f_code.co_name))

    before = sys.getprofile()
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


# --- how much, and where ----------------------------------------------------------------------------------------------


async def test_conversations_are_walked_through_beside_the_loop(redis_server: RedisServer, tmp_path: Path) -> None:
    async with site(redis_server, tmp_path) as (parts, client):
        response = await answered(parts, await queued(client, [{"role": "user", "content": "hi"}] * 3))
        with watched() as seen:
            assert (await client.get(f"{PATH}/{response}/input_items?limit=1")).json()["has_more"]
            for body in (
                {"input": "and?", "previous_response_id": response},
                {"input": [named(response, "in1"), named(response, "0")]},
            ):
                await queued(client, body.pop("input"), **body)
        walking = {"items_page", "listed", "conversation", "named_items", "gone_on", "check_calls"}
        assert {name for here, name in seen if not here} >= walking
        assert not walking & {name for here, name in seen if here}


async def test_few_items_of_many_great_responses_are_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    given = [{"role": "user", "content": words} for words in ("x" * 3_000, "hi")]
    async with site(redis_server, tmp_path, max_body_bytes=4_000) as (_, client):
        great = [await queued(client, given) for _ in range(MOST_READ_BODIES * 4 // 3 + 1)]

        async def asked(*items: dict[str, str]) -> tuple[int, str]:
            answer = await client.post(PATH, json={"model": "echo", "input": items, "background": True})
            return answer.status_code, (answer.json()["error"] or {"message": ""})["message"]

        small = [named(one, "in1") for one in great]
        assert (await asked(*small[: MOST_READ_BODIES // 2]))[0] == 200
        status, told = await asked(named(great[0], "in0"), named(great[1], "in0"))
        assert status == 413 and told.startswith("The items named")
        status, told = await asked(*small)
        assert status == 413 and told.startswith("The responses whose items are named")


# --- a key's request --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{"order": "2"}, {}])
async def test_a_key_with_other_metadata_is_another_request(
    redis_server: RedisServer, tmp_path: Path, metadata: dict[str, str]
) -> None:
    async with site(redis_server, tmp_path) as (_, client):
        client.headers["idempotency-key"] = "k"
        asked: dict[str, Any] = {"model": "echo", "input": "x", "background": True, "metadata": {"order": "1"}}
        first = await client.post(PATH, json=asked)
        assert (await client.post(PATH, json=asked)).json()["id"] == first.json()["id"]
        other = await client.post(PATH, json={**asked, "metadata": metadata})
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


# --- methods, and what is not there -----------------------------------------------------------------------------------


async def test_head_is_answered_as_get_is_at_every_address(redis_server: RedisServer, tmp_path: Path) -> None:
    async with site(redis_server, tmp_path) as (parts, client):
        response = await queued(client, "hi")
        digits = response.removeprefix("resp_")
        blanks = {"{response_id}": response, "{job_id}": f"job_{digits}", "{model}": "echo"}
        described = (await client.get("/docs/api")).json()["paths"]
        assert not [path for path, methods in described.items() if "head" in methods]
        paths = [path for path, methods in described.items() if "get" in methods]
        assert len(paths) > 20
        for template in (*paths, "/docs/swagger", f"{PATH}/none"):
            path = re.sub(r"{\w+}", lambda blank: blanks.get(blank[0], "none"), template)
            head = await client.head(path)
            if path.endswith("/events"):
                assert (head.status_code, head.content) == (200, b"")
                assert head.headers["content-type"].startswith("text/event-stream")
                continue
            get = await client.get(path)
            changing = ANEW | {"content-length"} if path == "/metrics" else ANEW
            assert head.status_code == get.status_code != 405, path
            told = [{name: value for name, value in one.headers.items() if name not in changing} for one in (head, get)]
            assert told[0] == told[1], path
        stream = await client.head(f"{PATH}/{response}?stream=true")
        assert (stream.status_code, stream.content) == (200, b"")
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert parts.hub.readers == 0, "nobody follows who asks for a stream's headers"


async def test_a_method_that_is_not_there_is_told_beside_head(redis_server: RedisServer, tmp_path: Path) -> None:
    async with site(redis_server, tmp_path) as (_, client):
        assert (await client.put("/v1/models")).headers["allow"] == "GET, HEAD"
        assert (await client.head("/v1/chat/completions")).headers["allow"] == "POST"


async def test_what_is_not_kept_or_made_here_is_told_in_words(redis_server: RedisServer, tmp_path: Path) -> None:
    async with site(redis_server, tmp_path) as (_, client):
        listed = await client.get("/v1/chat/completions")
        assert (listed.status_code, listed.headers["allow"]) == (405, "POST")
        asked = await client.get("/v1/chat/completions/chatcmpl-1")
        assert asked.status_code == 404
        for refused in (listed, asked):
            assert "not stored" in refused.json()["error"]["message"]
        compacted = await client.post(f"{PATH}/compact", json={"model": "echo", "input": "x"})
        assert (compacted.status_code, compacted.json()["error"]["code"]) == (404, "unknown_url")
        assert "compacted" in compacted.json()["error"]["message"]
        assert (await client.post(f"{PATH}/compact", headers={"authorization": "Bearer none"})).status_code == 401
