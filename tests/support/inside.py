"""A gateway's parts in the test's own process and loop, over a real server: nothing listens, and time is brisk."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from common.config import Settings, load
from common.store import REPLY_TIMEOUT_S, Store
from gateway.main import open_parts
from gateway.parts import Parts
from tests.support.clock import BriskClock
from tests.support.fleet import ECHO
from tests.support.redis_server import RedisServer


def settings(server: RedisServer, place: Path, **more: str | float) -> Settings:
    """Those of a gateway that knows the echo model; `place` is for its file."""
    file = place / "headrace.yaml"
    file.write_text(ECHO)
    given = {"redis_url": server.url, "config": file, "journal": "off", **more}
    return load({f"HEADRACE_{name.upper()}": str(value) for name, value in given.items()})


@asynccontextmanager
async def opened(
    server: RedisServer, place: Path, *, reply_timeout_s: float = REPLY_TIMEOUT_S, **more: str | float
) -> AsyncGenerator[Parts]:
    """The parts, none of which has begun; the store is closed at the end."""
    given = settings(server, place, **more)
    store = Store.from_url(given.effective_redis_url, reply_timeout_s=reply_timeout_s)
    try:
        yield replace(open_parts(given, store), clock=BriskClock())
    finally:
        await store.close()
