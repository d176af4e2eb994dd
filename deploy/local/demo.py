"""`headrace demo`: the whole stack on free ports, a question to a real model, its stream cut, resumed and checked."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from common.config import Settings
from common.contracts import Position
from deploy.local.client import DONE, GatewayClient, Passing, is_error, result_text, text_of
from deploy.local.embedded import DataDirectory
from deploy.local.jobs import show_text
from deploy.local.runner import bring_up, supervised
from deploy.local.sse import Event
from deploy.local.stack import DEMO_MODEL, plan
from deploy.local.trouble import Exit, Trouble

DEFAULT_QUESTION: Final = "What is a queue good for?"
INSTRUCTION: Final = "You answer questions with short, correct facts in English."
MOST_TOKENS: Final = 96
CUT_AFTER_TEXTS: Final = 5
AWAY_S: Final = 1.0
_STEPS: Final = 5
_ASK_STATUS_EVERY_S: Final = 0.25


class Steps:
    """What is going on: one moving line on a terminal, plain lines anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._columns = (
            SpinnerColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        self._progress: Progress | None = None
        self._said = ""

    def __call__(self, what: str) -> None:
        """Goes on to the next step."""
        if what == self._said:
            return
        self._said = what
        if not self._console.is_terminal:
            self._console.print(what, style="dim")
            return
        if self._progress is None:
            self._progress = Progress(*self._columns, console=self._console, transient=True)
            self._progress.add_task(what, total=_STEPS)
            self._progress.start()
            return
        self._progress.update(self._progress.task_ids[0], description=what, advance=1)

    def detail(self, what: str) -> None:
        """Says more about the present step."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=what)

    @property
    def under_way(self) -> bool:
        """Whether there is a line to change."""
        return self._progress is not None

    def done(self) -> None:
        """Clears the line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@dataclass(slots=True)
class Reading:
    """What a reader of the stream has got so far: each event's id, and the text in it."""

    seen: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    ended: bool = False

    def take(self, event: Event) -> str:
        """Notes the event and returns the text in it."""
        if is_error(event):
            raise Trouble(f"the answer failed: {event.data}")
        if event.data == DONE:
            self.ended = True
            return ""
        text = text_of(orjson.loads(event.data))
        self.seen.append((event.id, text))
        return text

    def forget_all_but_first(self) -> None:
        """Goes back to where only the first event had come."""
        self.seen, self.ended = self.seen[:1], False

    @property
    def position(self) -> str:
        """The id of the last event: where to go on; nothing while there is none."""
        return self.seen[-1][0] if self.seen else ""

    @property
    def rises(self) -> bool:
        """Whether each event's id is beyond the one before: none came twice, none out of order."""
        positions = [Position.parse(position) for position, _ in self.seen]
        return all(one < next_one for one, next_one in pairwise(positions))

    @property
    def texts(self) -> int:
        """How many events brought text."""
        return sum(1 for _, text in self.seen if text)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(text for _, text in self.seen)


async def demo(question: str, console: Console) -> Exit:
    """Runs the demonstration; the exit code tells whether the resumed stream was whole."""
    _forget_own_settings()
    this_task = asyncio.current_task()
    assert this_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)
    steps = Steps(console)
    with tempfile.TemporaryDirectory(prefix="headrace-demo-", ignore_cleanup_errors=True) as place:
        try:
            async with _stack(Path(place), steps) as client:
                return await _show(client, question, console, steps)
        finally:
            steps.done()


def _forget_own_settings() -> None:
    """The demonstration must not touch a real deployment that the environment may speak of."""
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        del os.environ[name]


@asynccontextmanager
async def _stack(place: Path, steps: Steps) -> AsyncGenerator[GatewayClient]:
    directory = DataDirectory(place)
    settings = Settings(http_port=0, metrics_port=0, data_dir=place)
    try:
        stack = plan(settings, directory, os.environ, demo_model=True)
        async with supervised(stack, steps) as supervisor:
            await bring_up(stack, supervisor, steps)
            async with GatewayClient(stack.url, stack.api_key) as client:
                yield client
    finally:
        directory.release()


async def _show(client: GatewayClient, question: str, console: Console, steps: Steps) -> Exit:
    job_id = await _submit(client, question)
    steps("queued")
    reading = Reading()
    await _read_until_cut(client, job_id, reading, console, steps)
    short = reading.ended
    if short:
        reading.forget_all_but_first()  # over before it could be cut: read it again from there, unseen
    before, position = len(reading.seen), reading.position
    console.print(Text(" ✂ ", style="bold red"), end="")
    await asyncio.sleep(AWAY_S)
    await _read_rest(client, job_id, reading, console, show=not short)
    console.print()
    record = await client.job(job_id)
    whole = reading.rises and reading.text == result_text(record)
    _report_resume(console, position, before, len(reading.seen) - before, whole=whole)
    _report_timings(console, record)
    _suggest(console)
    return Exit.OK if whole else Exit.FAILED


async def _submit(client: GatewayClient, question: str) -> str:
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
    options = {"temperature": 0, "max_tokens": MOST_TOKENS, "stream": True, "stream_options": {"include_usage": True}}
    body: dict[str, Any] = {"model": DEMO_MODEL, "messages": messages, **options}
    job = await client.submit({"endpoint": "/v1/chat/completions", "body": body, "priority": "interactive"})
    return str(job["id"])


async def _read_until_cut(client: GatewayClient, job_id: str, reading: Reading, console: Console, steps: Steps) -> None:
    """Reads the first tokens and then drops the connection; one that breaks by itself is a cut as good as ours."""
    asking = asyncio.create_task(_show_status(client, job_id, steps), name="show status")
    try:
        with suppress(Passing):
            await _read_first(client, job_id, reading, console, steps)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        steps.done()


async def _read_first(client: GatewayClient, job_id: str, reading: Reading, console: Console, steps: Steps) -> None:
    async with aclosing(client.events(job_id)) as events:
        async for event in events:
            text = reading.take(event)
            if text:
                steps.done()
                show_text(console, text)
            if reading.ended or reading.texts >= CUT_AFTER_TEXTS:
                return


async def _show_status(client: GatewayClient, job_id: str, steps: Steps) -> None:
    while True:
        record = await client.job(job_id)
        queue: dict[str, Any] = record.get("queue") or {}
        position = queue.get("position")
        waiting = f"queued, {position} before it" if position else "queued"
        if not steps.under_way:
            return  # the first token has come
        steps.detail("the model reads the question" if record["status"] == "running" else waiting)
        await asyncio.sleep(_ASK_STATUS_EVERY_S)


async def _read_rest(client: GatewayClient, job_id: str, reading: Reading, console: Console, *, show: bool) -> None:
    """Comes back with the last id that was seen, and reads to the end, over as many connections as that takes."""
    async with aclosing(client.follow(job_id, after=reading.position)) as events:
        async for event in events:
            text = reading.take(event)
            if show:
                show_text(console, text)


def _report_resume(console: Console, position: str, before: int, after: int, *, whole: bool) -> None:
    console.print(
        f"\n✂ cut after event {position}, resumed with Last-Event-ID: {position}", style="dim", highlight=False
    )
    if whole:
        console.print(
            f"✓ nothing missing, nothing twice: {before} events before the cut and {after} after it", style="green"
        )
        console.print("  are together the answer that the job's record keeps", style="green")
    else:
        console.print("✗ what was read is not the answer that the job's record keeps", style="bold red")


def _report_timings(console: Console, record: dict[str, Any]) -> None:
    timings: dict[str, int] = record.get("timings_ms") or {}
    usage: dict[str, Any] = record.get("usage") or {}
    tokens = int(usage.get("completion_tokens") or 0)
    writing_s = (timings.get("total", 0) - timings.get("first_token", 0)) / 1000
    rate = f"{(tokens - 1) / writing_s:.0f} tokens/s" if tokens > 1 and writing_s > 0 else "–"
    console.print(
        f"  queued {timings.get('queued', 0)} ms · first token {timings.get('first_token', 0)} ms · "
        f"{tokens} tokens · {rate}",
        highlight=False,
    )


def _suggest(console: Console) -> None:
    console.print("\nTry next:", style="bold")
    for command, what in (
        ("./just up", "the same stack on port 8080, until Ctrl-C; prints a key"),
        (".venv/bin/headrace submit --watch 'Why is the sky blue?'", "a job, and its stream, from another terminal"),
        (".venv/bin/headrace top", "lanes, workers and backends, live"),
    ):
        console.print(Text.assemble("  ", (command, "cyan"), (f"   # {what}", "dim")), soft_wrap=True)
