"""`headrace up`: the whole stack in the foreground until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Final

from common.config import Settings
from deploy.local.embedded import DataDirectory
from deploy.local.runner import bring_up, supervised
from deploy.local.stack import Stack, plan, wants_demo_model, write_state
from deploy.local.supervisor import Report, Supervisor
from deploy.local.trouble import Exit

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def up(settings: Settings, environ: Mapping[str, str], say: Report) -> Exit:
    """The exit code, once the stack has ended. Raises Trouble where it can't start or can't be kept running."""
    directory = DataDirectory(settings.data_dir)
    try:
        stack = plan(settings, directory, environ, demo_model=wants_demo_model(environ))
        async with supervised(stack, say) as supervisor:
            ending = _listen_for_signals(supervisor, say)
            await _serve_until(ending, stack, supervisor, say, directory)
    finally:
        (directory.path / "up.json").unlink(missing_ok=True)
        directory.release()
    say("stopped")
    return Exit.OK


def _listen_for_signals(supervisor: Supervisor, say: Report) -> asyncio.Event:
    """An event that the first signal sets; the second makes the stopping quick."""
    ending = asyncio.Event()

    def on_signal() -> None:
        if ending.is_set():
            supervisor.hurry.set()
            return
        say("stopping: no new work, what runs may end (once more to stop at once)")
        ending.set()

    for number in _ENDING:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return ending


async def _serve_until(
    ending: asyncio.Event, stack: Stack, supervisor: Supervisor, say: Report, directory: DataDirectory
) -> None:
    serving = asyncio.ensure_future(_serve(stack, supervisor, say, directory))
    signalled = asyncio.ensure_future(ending.wait())
    await asyncio.wait({serving, signalled}, return_when=asyncio.FIRST_COMPLETED)
    for task in (serving, signalled):
        task.cancel()
    results = await asyncio.gather(serving, signalled, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _serve(stack: Stack, supervisor: Supervisor, say: Report, directory: DataDirectory) -> None:
    await bring_up(stack, supervisor, say)
    write_state(stack, directory.path)
    for line in _welcome(stack, directory):
        say(line)
    raise await supervisor.give_up()


def _welcome(stack: Stack, directory: DataDirectory) -> list[str]:
    key = stack.api_key or "none is asked for (HEADRACE_AUTH=off)"
    model = ["model     smollm2 (a real one, 135 million parameters) and echo"] if stack.model_url else []
    return [
        f"base URL  {stack.url}/v1",
        f"API key   {key}",
        *model,
        f"metrics   {stack.metrics_url or 'none (HEADRACE_METRICS_PORT=0)'}",
        f"logs      {directory.path / 'log'}",
        f"ready on {stack.url}",
    ]
