"""What the providers' tests share: the loop they run on, the client, and the calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from workers.providers.transport import new_client


@pytest.fixture
def anyio_backend() -> str:
    """These tests run on asyncio."""
    return "asyncio"


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """The client that providers are given in production."""
    async with new_client() as made:
        yield made
