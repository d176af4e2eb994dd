"""The `headrace` command: what can be typed, its help, and the exit codes. Each command's work is in its own module."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from common.config import ConfigError, Settings, load
from common.errors import LedgerUnavailable
from common.ledger.database import Database
from common.log import configure
from deploy.local.child import python_environ, python_words
from deploy.local.client import GatewayClient, data_directory, find_gateway
from deploy.local.demo import DEFAULT_QUESTION, demo
from deploy.local.doctor import Finding, examine
from deploy.local.jobs import chat_job, pick_model, watch
from deploy.local.top import top
from deploy.local.trouble import Exit, Trouble
from deploy.local.up import up

EXIT_CODES: Final = (
    "Exit codes: 0 all is well; 1 it was done and came out badly; 2 wrong words or settings; "
    "3 something needed is missing, taken or out of reach; 130 interrupted."
)

_Result = TypeVar("_Result")

app = typer.Typer(
    name="headrace",
    help="A queue-backed, OpenAI-compatible inference gateway: every generation is a durable, resumable job.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Url = Annotated[
    str | None,
    typer.Option(envvar="HEADRACE_URL", help="The gateway; else the `headrace up` of this directory, else port 8080."),
]
Key = Annotated[str | None, typer.Option(envvar="HEADRACE_API_KEY", help="The API key; else the one of `headrace up`.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


def example(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join([f"[bold]Example:[/bold] [cyan]{line}[/cyan]" for line in lines] + [f"[dim]{EXIT_CODES}[/dim]"])


# --- the whole stack -------------------------------------------------------------------------------------------------


@app.command("demo", epilog=example("headrace demo", 'headrace demo "Why do mills have a headrace?"'))
def demo_command(
    question: Annotated[list[str] | None, typer.Argument(help="What to ask the model.", show_default=False)] = None,
) -> None:
    """Start everything on free ports, ask a real little model, cut the stream in mid-answer, and resume it."""
    console = Console(highlight=False)
    _finish(demo(" ".join(question or []) or DEFAULT_QUESTION, console))


@app.command("up", epilog=example("headrace up", "HEADRACE_WORKERS=3 HEADRACE_HTTP_PORT=9000 headrace up"))
def up_command() -> None:
    """Run the whole stack in the foreground until Ctrl-C: gateway, workers, scheduler, and what they need.

    Without HEADRACE_REDIS_URL an embedded Valkey is started, whose jobs survive a restart; without a configuration
    file a little real model is served as `smollm2`. Settings come from HEADRACE_… and headrace.yaml.
    """
    _finish(up(_settings(), os.environ, _say))


# --- one process each ------------------------------------------------------------------------------------------------


@app.command("gateway", epilog=example("HEADRACE_REDIS_URL=redis://redis:6379/0 headrace gateway"))
def gateway_command() -> None:
    """Run one gateway: HTTP in, tokens out. SIGTERM drains it."""
    _become("gateway")


@app.command("worker", epilog=example("HEADRACE_POOLS=gpu HEADRACE_WORKER_CONCURRENCY=32 headrace worker"))
def worker_command() -> None:
    """Run one worker: it takes jobs of its pools and calls their backends. SIGTERM drains it."""
    _become("workers")


@app.command("scheduler", epilog=example("headrace scheduler"))
def scheduler_command() -> None:
    """Run one scheduler: everything that happens on a timer. Several may run."""
    _become("scheduler")


def _become(module: str) -> NoReturn:
    """Goes on as that process, under the same id, so that signals and exit codes are its own."""
    _settings()  # a mistake in the settings is told here, in one line
    sys.stdout.flush()
    # The interpreter and words of our own, no shell between.
    os.execve(sys.executable, python_words(module), python_environ(os.environ))  # noqa: S606


# --- looking and asking ----------------------------------------------------------------------------------------------


@app.command("doctor", epilog=example("headrace doctor", "HEADRACE_CONFIG=prod.yaml headrace doctor"))
def doctor_command() -> None:
    """Check settings, Redis, clocks and backends, and say what mends each fault. Exit code 1 if there is one."""
    console = Console(highlight=False)
    findings = _run(examine())
    for finding in findings:
        _show_finding(console, finding)
    failures = sum(finding.level == "failure" for finding in findings)
    console.print(f"{failures} to mend" if failures else "all is well")
    raise typer.Exit(Exit.FAILED if failures else Exit.OK)


def _show_finding(console: Console, finding: Finding) -> None:
    mark, style = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failure": ("✗", "red")}[finding.level]
    console.print(Text.assemble((f"{mark} ", style), (f"{finding.subject}: ", "bold"), finding.what), soft_wrap=True)
    if finding.level != "ok":
        console.print(Text(f"  → {finding.mend}"), soft_wrap=True)


@app.command(
    "migrate", epilog=example("HEADRACE_DATABASE_URL=postgresql+asyncpg://headrace@db/headrace headrace migrate")
)
def migrate_command() -> None:
    """Bring the ledger's tables to this version. Every gateway and scheduler does so too when it starts."""
    settings = _settings()
    configure("warning", process="migrate")

    async def work() -> Exit:
        database = Database.of(settings)
        try:
            _say(f"{database.shown} is at revision {await database.upgrade()}")
        except LedgerUnavailable as error:
            raise Trouble(f"{database.shown}: {error}", Exit.UNAVAILABLE) from None
        finally:
            await database.close()
        return Exit.OK

    try:
        _finish(work())
    except ConfigError as error:
        _fail(Trouble(str(error), Exit.USAGE))


@app.command("submit", epilog=example("headrace submit 'Why is the sky blue?'", "headrace submit -w - <question.txt"))
def submit_command(  # noqa: PLR0913 - options are parameters here
    prompt: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model; else the gateway's first.")] = None,
    priority: Annotated[Literal["interactive", "standard", "batch"], typer.Option(help="Its class.")] = "standard",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key again is the same job.")] = None,
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Print the answer as it comes.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Submit a job and print its id."""
    text = sys.stdin.read() if prompt == "-" else prompt

    async def work() -> Exit:
        async with GatewayClient(*find_gateway(url, key, data_directory())) as client:
            chosen = await pick_model(client, model)
            body = chat_job(text, chosen, priority=priority, max_tokens=max_tokens)
            job = await client.submit(body, idempotency_key=idempotency_key)
            print_id = Console(stderr=watch_it, highlight=False)
            print_id.print(job["id"], soft_wrap=True)
            return await watch(client, job["id"], Console()) if watch_it else Exit.OK

    _finish(work())


@app.command("watch", epilog=example("headrace watch job_default_0123456789abcdef0123456789abcdef"))
def watch_command(
    job: Job,
    *,
    after: Annotated[str, typer.Option(help="Begin after this event id (Last-Event-ID).")] = "",
    url: Url = None,
    key: Key = None,
) -> None:
    """Print a job's answer as it comes; reconnects by itself and goes on where it was."""

    async def work() -> Exit:
        async with GatewayClient(*find_gateway(url, key, data_directory())) as client:
            return await watch(client, job, Console(), after=after)

    _finish(work())


@app.command("top", epilog=example("headrace top", "headrace top --once"))
def top_command(
    *,
    once: Annotated[bool, typer.Option("--once", help="Show it once, for scripts.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 1.0,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show lanes, workers and backends, live."""

    async def work() -> Exit:
        async with GatewayClient(*find_gateway(url, key, data_directory())) as client:
            await top(client, Console(), every_s=every_s, once=once)
            return Exit.OK

    _finish(work())


# --- operating -------------------------------------------------------------------------------------------------------


@app.command("drain", epilog=example("headrace drain gpu-7.311.0a1b2c3d"))
def drain_command(
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="Its id, as /workers and `headrace top` show it.")],
    *,
    url: Url = None,
    key: Key = None,
) -> None:
    """Have a worker take nothing new, end its work, and leave. `headrace up` does not start it again."""

    async def work() -> Exit:
        async with GatewayClient(*find_gateway(url, key, data_directory())) as client:
            await client.drain(worker)
            _say(f"{worker} drains")
            return Exit.OK

    _finish(work())


@app.command("dead", epilog=example("headrace dead", "headrace dead --limit 100"))
def dead_command(
    *,
    most: Annotated[int, typer.Option("--limit", min=1, max=100, help="How many at most.")] = 20,
    url: Url = None,
    key: Key = None,
) -> None:
    """List your jobs whose attempts were used up, the newest first."""

    async def work() -> Exit:
        async with GatewayClient(*find_gateway(url, key, data_directory())) as client:
            for letter in await client.dead_letters(most=most):
                again = f" replayed as {letter['replayed_as']}" if letter["replayed_as"] else ""
                typer.echo(f"{letter['id']} {letter['model']} {letter['reason']['code']}{again}")
            return Exit.OK

    _finish(work())


@app.command("replay", epilog=example("headrace replay job_default_0123456789abcdef0123456789abcdef"))
def replay_command(job: Job, *, url: Url = None, key: Key = None) -> None:
    """Run a dead letter anew, and print the new job's id; asked again, it is the same one."""

    async def work() -> Exit:
        async with GatewayClient(*find_gateway(url, key, data_directory())) as client:
            typer.echo(await client.replay(job))
            return Exit.OK

    _finish(work())


# --- how every command ends ------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    typer.echo(f"headrace: {line}")
    sys.stdout.flush()


def _settings() -> Settings:
    try:
        return load()
    except ConfigError as error:
        _fail(Trouble(str(error), Exit.USAGE))


def _run(work: Coroutine[Any, Any, _Result]) -> _Result:
    try:
        return asyncio.run(work)
    except Trouble as trouble:
        _fail(trouble)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(Exit.INTERRUPTED) from None


def _finish(work: Coroutine[Any, Any, Exit]) -> NoReturn:
    raise typer.Exit(_run(work))


def _fail(trouble: Trouble) -> NoReturn:
    typer.echo(f"headrace: {trouble}", err=True)
    raise typer.Exit(trouble.code)


def main() -> None:
    """The entry point."""
    app(prog_name="headrace")


if __name__ == "__main__":
    main()
