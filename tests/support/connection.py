"""A request's side of ASGI, its client taking what it is sent, or nothing; and a hub without a store."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message

from common.clock import SystemClock
from common.queue import Queue
from common.store import Store
from common.stream import StreamStore
from gateway.http import HANG_UP
from gateway.hub import Hub
from gateway.readers import Limits


class Connection:
    """One request: what was sent, and how it was hung up, if it was."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.headers: dict[str, str] = {}
        self.bodies: list[bytes] = []
        self.hung_up: list[bool] = []
        self.more = True
        self.began = asyncio.Event()
        self._stuck = stuck
        self.scope: dict[str, Any] = {"type": "http", "method": "GET", HANG_UP: self._hang_up}

    def _hang_up(self, *, at_once: bool = False) -> None:
        self.hung_up.append(at_once)

    async def receive(self) -> Message:
        """The client stays."""
        return await asyncio.get_running_loop().create_future()

    async def send(self, message: Message) -> None:
        """Takes what comes, unless the client is stuck."""
        if message["type"] == "http.response.start":
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        if message["type"] == "http.response.body":
            self.began.set()
            if self._stuck:
                await asyncio.get_running_loop().create_future()
            self.bodies.append(message["body"])
            self.more = message.get("more_body", False)


def idle_hub() -> Hub:
    """A hub that nobody reads through."""
    store = Store.from_url("redis://127.0.0.1:1/0")
    return Hub(store, StreamStore(store), Queue(store), SystemClock(), pools=(), limits=Limits())
