"""Brings a planned stack up, says when it is ready, and takes it down in order; `up` and `demo` both stand on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import httpx

from deploy.local.stack import Stack
from deploy.local.supervisor import Report, Supervisor
from deploy.local.trouble import Exit, Trouble

READY_LIMIT_S: Final = 90.0
_ASK_AGAIN_S: Final = 0.05

Question = Callable[[], Awaitable[bool]]


@asynccontextmanager
async def supervised(stack: Stack, report: Report) -> AsyncGenerator[Supervisor]:
    """A supervisor with nothing started yet; however the block ends, every process has then ended."""
    supervisor = Supervisor(report)
    try:
        yield supervisor
    finally:
        await _stop_for_certain(supervisor)
        if stack.valkey is not None:
            stack.valkey.clean()


async def _stop_for_certain(supervisor: Supervisor) -> None:
    stopping = asyncio.ensure_future(supervisor.stop())
    while not stopping.done():
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            supervisor.hurry.set()  # whoever cancels us again wants it quicker, not half done
    stopping.result()


async def bring_up(stack: Stack, supervisor: Supervisor, report: Report) -> None:
    """Returns when requests can be answered. Raises Trouble when a process can't be kept running, or after a limit."""
    hopeless = asyncio.ensure_future(supervisor.give_up())
    rising = asyncio.ensure_future(_rise(stack, supervisor, report))
    try:
        await asyncio.wait({hopeless, rising}, return_when=asyncio.FIRST_COMPLETED)
        if hopeless.done():
            raise hopeless.result()
        rising.result()
    finally:
        hopeless.cancel()
        rising.cancel()
        await asyncio.gather(hopeless, rising, return_exceptions=True)


async def _rise(stack: Stack, supervisor: Supervisor, report: Report) -> None:
    async with httpx.AsyncClient(timeout=5, trust_env=False, headers=_headers(stack)) as client:
        await supervisor.start(stack.servers)
        if stack.valkey is not None:
            report("starting Valkey")
            await _until(stack.valkey.answers, "the embedded Valkey")
        await supervisor.start(stack.processes)
        if stack.model_url is not None:
            report("loading the model")
            await _until(lambda: _is_ok(client, f"{stack.model_url}/health"), "the embedded model")
        report("starting the gateway and the workers")
        await _until(lambda: _is_ok(client, f"{stack.url}/readyz"), _what_readiness_needs(stack))
        await _until(lambda: _workers_are_there(client, stack), "the workers")


def _headers(stack: Stack) -> dict[str, str]:
    return {"authorization": f"Bearer {stack.api_key}"} if stack.api_key else {}


def _what_readiness_needs(stack: Stack) -> str:
    return "the gateway" if stack.valkey else "the gateway, or the Redis of HEADRACE_REDIS_URL, which it waits for,"


async def _until(answers: Question, what: str) -> None:
    try:
        async with asyncio.timeout(READY_LIMIT_S):
            while not await answers():  # noqa: ASYNC110 - another process has no event to wait for
                await asyncio.sleep(_ASK_AGAIN_S)
    except TimeoutError:
        raise Trouble(
            f"{what} did not answer within {READY_LIMIT_S:g} s; `headrace doctor` looks for the reason",
            Exit.UNAVAILABLE,
        ) from None


async def _is_ok(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == HTTPStatus.OK
    except httpx.TransportError:
        return False


async def _workers_are_there(client: httpx.AsyncClient, stack: Stack) -> bool:
    try:
        answer = await client.get(f"{stack.url}/workers")
    except httpx.TransportError:
        return False
    return answer.status_code == HTTPStatus.OK and len(answer.json()) >= stack.workers
