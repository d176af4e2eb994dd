"""`headrace top`: lanes, workers and backends as they are now, as tables that any terminal can show."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.clock import SystemClock
from deploy.local.client import GatewayClient
from deploy.local.trouble import Trouble

Row = dict[str, Any]
_HEALTH: Final = {"True": ("healthy", "green"), "False": ("down", "red")}


@dataclass(frozen=True, slots=True)
class View:
    """What one round of asking brought."""

    url: str
    lanes: Sequence[Row]
    workers: Sequence[Row]
    now_ms: int


async def look(client: GatewayClient) -> View:
    """One round of asking."""
    queues, workers = await asyncio.gather(client.get("/v1/queues"), client.get("/workers"))
    return View(client.url, rows_of(queues), rows_of(workers), SystemClock().now_ms())


async def top(client: GatewayClient, console: Console, *, every_s: float, once: bool) -> None:
    """Shows the view once, or anew every so often until Ctrl-C."""
    if once:
        console.print(render(await look(client)))
        return
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(await _look_or_say(client), refresh=True)
            await asyncio.sleep(every_s)


async def _look_or_say(client: GatewayClient) -> RenderableType:
    try:
        return render(await look(client))
    except Trouble as trouble:
        return Text(str(trouble), style="red")


def rows_of(answer: list[Row] | dict[str, list[Row]]) -> list[Row]:
    """The rows of a list answer, bare or under OpenAI's `data`."""
    return answer if isinstance(answer, list) else answer["data"]


def render(view: View) -> RenderableType:
    """The three tables."""
    backends = {row["name"]: row for worker in view.workers for row in worker.get("backends", [])}
    return Group(
        Text.assemble(("headrace ", "bold cyan"), (view.url, "dim")),
        _lanes(view),
        _workers(view),
        _backends(list(backends.values())),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", expand=False, box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", header_style="dim", no_wrap=True)
    return table


def _lanes(view: View) -> RenderableType:
    table = _table("\nLanes", "pool", "model", "class", "waiting", "oldest", "estimated wait")
    for row in view.lanes:
        table.add_row(
            str(row["pool"]),
            str(row.get("model", "")),
            str(row.get("priority", "")),
            str(row["depth"]),
            duration(row.get("oldest_age_ms")),
            duration(row.get("estimated_wait_ms")),
        )
    return table if view.lanes else Text("\nLanes\nnothing waits", style="dim")


def _workers(view: View) -> RenderableType:
    table = _table("\nWorkers", "worker", "pool", "running", "slots", "lease")
    for row in view.workers:
        left_ms = row["lease_expires_ms"] - view.now_ms
        table.add_row(
            str(row["id"]),
            str(row["pool"]),
            str(row["running"]),
            str(row["concurrency"]),
            duration(left_ms) if left_ms > 0 else Text("lapsed", style="red"),
        )
    return table if view.workers else Text("\nWorkers\nnone: jobs wait until one comes", style="yellow")


def _backends(rows: Sequence[Row]) -> RenderableType:
    table = _table("\nBackends", "backend", "health", "breaker")
    for row in rows:
        word, style = _HEALTH.get(str(row.get("healthy")), ("unknown", "dim"))
        table.add_row(str(row["name"]), Text(word, style=style), str(row.get("breaker", "–")))
    return table if rows else Text("")


def duration(ms: float | None) -> str:
    """Milliseconds in the unit that suits them."""
    if ms is None:
        return "–"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s" if ms < 100_000 else f"{ms / 60_000:.0f} min"
