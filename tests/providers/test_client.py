"""The workers' HTTP client used as httpx's: whole answers, streams, and its end."""

from __future__ import annotations

import pytest

from tests.support.upstream import Reply, Upstream
from workers.providers.transport import new_client


async def test_an_answer_that_is_no_stream_comes_whole() -> None:
    async with new_client() as client, Upstream(lambda _: Reply([b"one ", b"piece"])).running() as upstream:
        answer = await client.get(upstream.url)
        assert (answer.content, answer.is_closed) == (b"one piece", True)


async def test_a_stream_is_not_read_before_it_is_asked_for() -> None:
    async with new_client() as client, Upstream(lambda _: Reply([b"one ", b"piece"])).running() as upstream:
        async with client.stream("GET", upstream.url) as answer:
            assert not answer.is_stream_consumed
            assert await answer.aread() == b"one piece"


async def test_a_closed_client_sends_nothing() -> None:
    async with Upstream(lambda _: Reply([b""])).running() as upstream:
        async with new_client() as client:
            await client.get(upstream.url)
        with pytest.raises(RuntimeError, match="closed"):
            await client.get(upstream.url)
        assert len(upstream.requests) == 1
