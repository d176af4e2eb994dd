"""An answer sent in pieces: to its end, or until its client leaves or takes nothing, or this process goes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar, Final

import anyio
import structlog
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.http import HANG_UP
from gateway.hub import Hub

log = structlog.get_logger(__name__)

SEND_TIMEOUT_S: Final = 30


class BrokenOff(Exception):
    """The rest of what is being sent is not there. Whoever raises it has said why."""


class Sending(EventSourceResponse):
    """sse-starlette's response with one task beside the request's own, not four: with thousands of streams they count.

    Shutdown comes from the hub, so what is left to watch is the client's leaving. A client that takes nothing for
    `send_timeout_s` is cut. What ends before its end is hung up, so that nobody takes it for whole.
    """

    drops_unsent: ClassVar[bool] = False
    """Whether, where it is cut, what the client has not taken by then is of no use to it."""

    def __init__(
        self,
        hub: Hub,
        body: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        media_type: str,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            body, headers=headers, media_type=media_type, ping=0, sep="\n", send_timeout=send_timeout_s
        )
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the end or until the client leaves."""
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        hang_up = scope.get(HANG_UP, _nothing)
        at_once, complete = self.drops_unsent, False
        try:
            async with anyio.create_task_group() as tasks:
                with self._hub.cuttable(tasks.cancel_scope):
                    tasks.start_soon(self._until_gone, receive, tasks.cancel_scope)
                    await self._stream_response(send)
                    complete = True
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            at_once = self._is_stuck(group.exceptions[0]) or at_once
        if not complete:
            hang_up(at_once=at_once)

    def _is_stuck(self, fault: BaseException) -> bool:
        """Whether it is the client that takes nothing. Raises what is a fault of ours."""
        if isinstance(fault, SendTimeoutError):
            log.info("relay.client_takes_nothing", for_s=self.send_timeout)
            return True
        if not isinstance(fault, BrokenOff):
            raise fault from None
        return False

    async def _until_gone(self, receive: Receive, scope: anyio.CancelScope) -> None:
        await self._listen_for_disconnect(receive)
        scope.cancel()


def _nothing(*, at_once: bool = False) -> None:
    """There is no connection to hang up."""
