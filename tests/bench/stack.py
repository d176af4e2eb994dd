"""The systems under test, each started on the one core and in front of the same stand-in upstream."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson
import yaml

from tests.bench.cpu import Cores
from tests.bench.load import Target
from tests.bench.processes import (
    Command,
    NotReady,
    Process,
    free_port,
    get,
    python,
    start,
    wait_until,
    wait_until_ready,
)
from tests.bench.upstream import SCRIPTS, Counts
from tests.support.redis_server import binaries

API_KEY: Final = "sk-bench-0123456789abcdef"
LITELLM_VARIABLE: Final = "HEADRACE_BENCH_LITELLM"
_LITELLM_START_S: Final = 180


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run of the bench fixes for every system: a directory for logs and data, the cores, how many workers."""

    directory: Path
    cores: Cores
    workers: int = 1
    worker_concurrency: int = 256
    environ: Mapping[str, str] = field(default_factory=dict[str, str])

    def with_system_everywhere(self, worker_concurrency: int) -> Setup:
        """The same with every core for the system under test, and room for more streams."""
        placed = dataclasses.replace(self.cores, system=self.cores.every)
        return dataclasses.replace(self, cores=placed, worker_concurrency=worker_concurrency)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The running stand-in."""

    process: Process
    port: int

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def counts(self) -> Counts:
        """What it has seen so far."""
        return Counts(**orjson.loads(get(self.port, "/stats")[1]))


@dataclass(frozen=True, slots=True)
class System:
    """A running system under test: where to send requests, and its processes by part."""

    target: Target
    parts: dict[str, int]


@contextmanager
def upstream(setup: Setup) -> Generator[Upstream]:
    """The stand-in, on the harness's core."""
    port = free_port()
    command = Command("upstream", python("tests.bench.upstream", "--port", str(port)), setup.cores.harness)
    with _running(command, setup) as process:
        wait_until_ready(process, port, "/health")
        yield Upstream(process, port)


@contextmanager
def _running(command: Command, setup: Setup) -> Generator[Process]:
    process = start(command, setup.directory)
    try:
        yield process
    finally:
        process.end()


# --- the systems ------------------------------------------------------------------------------------------------------


@contextmanager
def direct(setup: Setup, upstream: Upstream) -> Generator[System]:
    """Nothing between: the stand-in itself, to know what the harness costs."""
    yield System(Target("direct", upstream.port), {})


@contextmanager
def passthrough(setup: Setup, upstream: Upstream) -> Generator[System]:
    """The bare pass-through."""
    port = free_port()
    words = python("tests.bench.passthrough", "--port", str(port), "--upstream", upstream.url)
    with _running(Command("passthrough", words, setup.cores.system), setup) as process:
        wait_until_ready(process, port, "/health")
        yield System(Target("passthrough", port), {"proxy": process.pid})


def litellm_program() -> str | None:
    """LiteLLM's command where there is one."""
    return os.environ.get(LITELLM_VARIABLE) or shutil.which("litellm")


@contextmanager
def litellm(setup: Setup, upstream: Upstream) -> Generator[System]:
    """LiteLLM's proxy, one process, no database, no telemetry."""
    program = litellm_program()
    if program is None:
        raise NotReady(f"there is no litellm here; {LITELLM_VARIABLE} may name its program")
    port = free_port()
    config = setup.directory / "litellm.yaml"
    config.write_text(yaml.safe_dump(_litellm_config(upstream)), encoding="utf-8")
    words = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    told = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_DOCS": "True"}
    with _running(Command("litellm", [*words, "--telemetry", "False"], setup.cores.system, told), setup) as process:
        wait_until_ready(process, port, "/health/liveliness", limit_s=_LITELLM_START_S)
        yield System(Target("litellm", port, API_KEY), {"proxy": process.pid})


def _litellm_config(upstream: Upstream) -> dict[str, object]:
    def row(name: str) -> dict[str, object]:
        params = {"model": f"openai/{name}", "api_base": f"{upstream.url}/v1", "api_key": "sk-none"}
        return {"model_name": name, "litellm_params": params}

    return {
        "model_list": [row(name) for name in SCRIPTS],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "general_settings": {"master_key": API_KEY},
    }


@dataclass(frozen=True, slots=True)
class Valkey:
    """A running Valkey."""

    url: str
    pid: int


@contextmanager
def valkey(setup: Setup, *, append_only: bool = True) -> Generator[Valkey]:
    """An empty embedded Valkey on the system's core: never evicting, append-only file synced every second."""
    data = setup.directory / "valkey"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    port = free_port()
    words = [
        binaries()["valkey"],
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--save", ""),
        *("--appendonly", "yes" if append_only else "no", "--appendfsync", "everysec"),
        *("--maxmemory-policy", "noeviction"),
    ]
    with _running(Command("valkey", words, setup.cores.system), setup) as process:
        wait_until(lambda: _pings(port), lambda: f"Valkey does not answer:\n{process.last_lines()}", limit_s=10)
        yield Valkey(f"redis://127.0.0.1:{port}/0", process.pid)


def _pings(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Deployment:
    """A Headrace to start: the configuration of gateway and scheduler, and one for each worker process."""

    shared: Mapping[str, object]
    workers: Sequence[Mapping[str, object]]
    worker_concurrency: int
    environ: Mapping[str, str] = field(default_factory=dict[str, str])


@contextmanager
def deployed(setup: Setup, deployment: Deployment) -> Generator[System]:
    """The whole stack: Valkey, one gateway, one scheduler, and the workers."""
    documents = {"gateway": deployment.shared, "scheduler": deployment.shared}
    documents |= {f"worker-{number}": own for number, own in enumerate(deployment.workers, 1)}
    with ExitStack() as running:
        server = running.enter_context(valkey(setup))
        port = free_port()
        told = {
            "HEADRACE_HTTP_PORT": str(port),
            "HEADRACE_REDIS_URL": server.url,
            "HEADRACE_API_KEYS": API_KEY,
            "HEADRACE_WORKER_CONCURRENCY": str(deployment.worker_concurrency),
            "HEADRACE_DATA_DIR": str(setup.directory / "data"),
            **setup.environ,
            **deployment.environ,
        }
        commands = [_part(name, document, told, setup) for name, document in documents.items()]
        processes = [running.enter_context(_running(command, setup)) for command in commands]
        wait_until_ready(processes[0], port, "/readyz")
        _wait_for_workers(processes, port, told["HEADRACE_API_KEYS"].partition(",")[0], len(deployment.workers))
        parts = {process.name: process.pid for process in processes}
        parts["valkey"] = server.pid
        yield System(Target("headrace", port, API_KEY), parts)


def _part(name: str, document: Mapping[str, object], told: Mapping[str, str], setup: Setup) -> Command:
    module = name if name in ("gateway", "scheduler") else "workers"
    config = setup.directory / f"{name}.yaml"
    config.write_text(json.dumps(document), encoding="utf-8")
    environ = {**told, "HEADRACE_CONFIG": str(config), "HEADRACE_METRICS_PORT": str(free_port())}
    return Command(name, python(module), setup.cores.system, environ)


def _wait_for_workers(processes: list[Process], port: int, api_key: str, workers: int) -> None:
    gateway = processes[0]

    def registered() -> bool:
        status, body = get(port, "/workers", api_key)
        return status == 200 and len(orjson.loads(body)) >= workers

    wait_until(registered, lambda: f"the workers did not register:\n{gateway.last_lines()}")


def headrace(setup: Setup, upstream: Upstream) -> AbstractContextManager[System]:
    """The whole stack in front of the stand-in."""
    document = configuration({"standin": upstream.url}, SCRIPTS, kind="openai", concurrency=8192)
    return deployed(setup, Deployment(document, [document] * setup.workers, setup.worker_concurrency))


def configuration(
    backends: Mapping[str, str], models: Iterable[str], *, kind: str, concurrency: int
) -> dict[str, object]:
    """A configuration in which each model may be had of each backend, equally."""
    rows = [{"name": name, "kind": kind, "base_url": url, "concurrency": concurrency} for name, url in backends.items()]
    targets = [{"backend": name, "weight": 1} for name in backends]
    return {
        "backends": rows,
        "models": {name: {"targets": [{**target, "model": name} for target in targets]} for name in models},
    }


SYSTEMS: Final[Mapping[str, Callable[[Setup, Upstream], AbstractContextManager[System]]]] = {
    "direct": direct,
    "passthrough": passthrough,
    "litellm": litellm,
    "headrace": headrace,
}


def present() -> list[str]:
    """The systems that can be started here."""
    return [name for name in SYSTEMS if name != "litellm" or litellm_program()]


def version_of(system: str) -> str:
    """The version of a foreign system, where it is one."""
    program = litellm_program()
    if system != "litellm" or program is None:
        return ""
    # Its own --version imports all of it; the package's metadata lies beside the program.
    found = sorted(Path(program).resolve().parents[1].glob("lib/python*/site-packages/litellm-*.dist-info"))
    return found[0].name.removeprefix("litellm-").removesuffix(".dist-info") if found else ""
