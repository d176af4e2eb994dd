"""A fault proxy on a loop and thread of its own, for processes that outlive one test's loop."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from tests.support.proxy import Fault, Proxy


class ProxyThread:
    """`Proxy`, to be used from any thread. Faults are put in as there."""

    def __init__(self, *ports: int) -> None:
        self._proxy = Proxy(*ports)
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10), "the proxy did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        """The proxy's address as a Redis URL."""
        return self._proxy.url

    @property
    def port(self) -> int:
        """The proxy's port."""
        return self._proxy.port

    def put_in(self, fault: Fault) -> None:
        """This fault acts from now on, instead of the one before."""
        self._loop.call_soon_threadsafe(setattr, self._proxy, "fault", fault)

    def heal(self) -> None:
        """Everything passes again; connections that may have lost something end."""
        self.put_in(Fault())
        self._loop.call_soon_threadsafe(self._proxy.sever)

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        async with self._proxy:
            self._up.set()
            await self._over.wait()
