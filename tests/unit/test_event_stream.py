"""A stream's end on the wire: whole, cut, or with a client that takes nothing; only the first looks like an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from common.contracts import Job, OnInterrupt, Outcome, Position, State
from common.metrics import GatewayMetrics
from common.stream import EVENTS, Entry
from gateway.dialects.surfaces import SURFACES
from gateway.relay import EventStream, Relay, stored_frames
from tests.support.connection import Connection, idle_hub


async def _words(*words: bytes, ends: bool = True) -> AsyncGenerator[bytes, None]:
    for word in words:
        yield word
    if not ends:
        await asyncio.get_running_loop().create_future()


async def test_a_stream_that_ends_is_completed_and_its_connection_kept() -> None:
    connection = Connection()
    await EventStream(idle_hub(), _words(b"a", b"b"), {})(connection.scope, connection.receive, connection.send)
    assert b"".join(connection.bodies) == b"ab"
    assert (connection.more, connection.hung_up) == (False, [])


async def test_a_stream_that_is_cut_is_hung_up_and_never_completed() -> None:
    connection, hub = Connection(), idle_hub()
    stream = EventStream(hub, _words(b"a", ends=False), {})
    serving = asyncio.create_task(stream(connection.scope, connection.receive, connection.send))
    await connection.began.wait()
    hub.cut()
    await serving
    assert (connection.bodies, connection.more, connection.hung_up) == ([b"a"], True, [False])


async def test_a_stream_that_begins_when_the_others_were_cut_is_cut_too() -> None:
    connection, hub = Connection(), idle_hub()
    hub.cut()
    await EventStream(hub, _words(b"a", ends=False), {})(connection.scope, connection.receive, connection.send)
    assert (connection.more, connection.hung_up) == (True, [False])


async def test_a_client_that_takes_nothing_is_hung_up_at_once_and_is_no_fault_of_ours() -> None:
    connection = Connection(stuck=True)
    stream = EventStream(idle_hub(), _words(b"a", ends=False), {}, send_timeout_s=0.02)
    await stream(connection.scope, connection.receive, connection.send)
    assert (connection.bodies, connection.more) == ([], True)
    assert connection.hung_up[0] is True


JOB_ID = "job_a_" + "0" * 32
# What no provider lets through: half a token.
JUNK: dict[str, Any] = {"index": 0, "logprobs": {"content": [{"token": "a"}]}, "finish_reason": None}


@pytest.mark.parametrize("dialect", ["responses", "completions"])
@pytest.mark.parametrize("stored", [True, False])
async def test_an_answer_that_its_shape_cannot_tell_ends_with_an_error(dialect: str, stored: bool) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    shape = SURFACES[dialect].shape(Job(JOB_ID, "a", "t", "/v1/chat/completions", "m", body, dialect=dialect), 0)
    if stored:
        result = orjson.dumps({"choices": [{**JUNK, "message": {"content": "a"}}]})
        stream = stored_frames(shape, 1, Outcome(State.SUCCEEDED), result)
    else:
        entry = Entry(Position(1, 1), EVENTS, orjson.dumps({"choices": [{**JUNK, "delta": {"content": "a"}}]}))
        metrics = GatewayMetrics(CollectorRegistry())
        stream = Relay(idle_hub().expect(JOB_ID), shape, metrics, on_interrupt=OnInterrupt.FAIL).bytes([entry])
    frames = b"".join([piece async for piece in stream]).decode().split("\n\n")
    told = orjson.loads(frames[-2].rpartition("data: ")[2])
    assert frames[-1] == "" and told.get("error", told)["code"] == "internal_error"
