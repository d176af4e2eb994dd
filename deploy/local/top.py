"""`headrace top`: lanes, workers and backends as they are now, as tables that any terminal can show."""

from __future__ import annotations

import asyncio
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
    """What one round of asking brought: the rows of /v1/queues and of /workers."""

    url: str
    pools: list[Row]
    workers: list[Row]
    now_ms: int


async def look(client: GatewayClient) -> View:
    """One round of asking."""
    queues, workers = await asyncio.gather(client.get("/v1/queues"), client.get("/workers"))
    return View(client.url, queues["data"], workers, SystemClock().now_ms())


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


def render(view: View) -> RenderableType:
    """The four tables."""
    backends = {(worker["pool"], row["name"]): row for worker in view.workers for row in worker["backends"]}
    return Group(
        Text.assemble(("headrace ", "bold cyan"), (view.url, "dim")),
        _pools(view),
        _lanes(view),
        _workers(view),
        _backends(backends),
    )


def _table(title: str, *columns: str) -> Table:
    """A table whose first two columns are words and whose others are numbers."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", header_style="dim", no_wrap=True)
    return table


def _pools(view: View) -> RenderableType:
    table = _table("Pools", "pool", "", "waiting", "delayed", "running", "drains")
    for row in view.pools:
        running = sum(worker["running"] for worker in view.workers if worker["pool"] == row["pool"])
        rate = row.get("drain_jobs_per_s")
        drains = "–" if rate is None else f"{rate:.1f} jobs/s"
        table.add_row(row["pool"], "", str(row["depth"]), str(row["delayed"]), str(running), drains)
    return table


def _lanes(view: View) -> RenderableType:
    table = _table("Lanes", "pool", "model", "class", "waiting", "oldest")
    for pool in view.pools:
        for lane in pool["lanes"]:
            age = duration(lane["oldest_age_ms"])
            table.add_row(pool["pool"], lane["model"], lane["class"], str(lane["depth"]), age)
    return table if table.row_count else Text("\nLanes\nnothing waits", style="dim")


def _workers(view: View) -> RenderableType:
    table = _table("Workers", "worker", "pool", "running", "slots", "lease")
    for row in view.workers:
        left_ms = row["lease_expires_ms"] - view.now_ms
        lease = Text(duration(left_ms)) if left_ms > 0 else Text("lapsed", style="red")
        table.add_row(row["id"], row["pool"], str(row["running"]), str(row["concurrency"]), lease)
    return table if view.workers else Text("\nWorkers\nnone: jobs wait until one comes", style="yellow")


def _backends(backends: dict[tuple[str, str], Row]) -> RenderableType:
    table = _table("Backends", "backend", "pool", "health", "breaker", "load")
    for (pool, name), row in backends.items():
        word, style = _HEALTH.get(str(row.get("healthy")), ("not yet known", "dim"))
        load = row.get("load")
        table.add_row(
            name, pool, Text(word, style=style), str(row.get("breaker") or "–"), "–" if load is None else f"{load:g}"
        )
    return table if backends else Text("")


def duration(ms: float | None) -> str:
    """Milliseconds in the unit that suits them."""
    if ms is None:
        return "–"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s" if ms < 100_000 else f"{ms / 60_000:.0f} min"
