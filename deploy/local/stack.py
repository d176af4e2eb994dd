"""Which processes make up the whole stack on one machine, and what each is told; decided before any is started."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from common.config import DEFAULT_FILE, Settings
from deploy.local.child import Command, python_environ, python_words
from deploy.local.embedded import DataDirectory, EmbeddedValkey, free_port, is_free, model_command
from deploy.local.trouble import Exit, Trouble

SCHEDULER_STAGE: Final = 2
WORKER_STAGE: Final = 3
GATEWAY_STAGE: Final = 4
GATEWAY_METRICS_PORT: Final = 9091
DEMO_MODEL: Final = "smollm2"
_KILL_AFTER_DRAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Stack:
    """What is to run, and where it will be found. `servers` must answer before `processes` are of use."""

    url: str
    api_key: str | None
    redis_url: str
    metrics_url: str | None
    workers: int
    valkey: EmbeddedValkey | None
    model_url: str | None
    servers: tuple[Command, ...]
    processes: tuple[Command, ...]


def wants_demo_model(environ: Mapping[str, str]) -> bool:
    """Whether there is no configuration file, so that a model has to be brought along."""
    return "HEADRACE_CONFIG" not in environ and not Path(DEFAULT_FILE).is_file()


def plan(settings: Settings, directory: DataDirectory, environ: Mapping[str, str], *, demo_model: bool) -> Stack:
    """The stack for these settings. Raises Trouble where a port is taken or an embedded part is missing."""
    http_port = _taken_never(settings.http_host, settings.http_port, "HEADRACE_HTTP_PORT")
    metrics_port = _metrics_port(settings)
    valkey = None if settings.redis_url else EmbeddedValkey(directory)
    redis_url = settings.redis_url or (valkey.url if valkey else "")
    key = api_key(settings, directory.path)
    told = {
        **python_environ(environ),
        "HEADRACE_HTTP_PORT": str(http_port),
        "HEADRACE_REDIS_URL": redis_url,
        "HEADRACE_DATA_DIR": str(directory.path),
    }
    if key is not None:
        told["HEADRACE_API_KEYS"] = environ.get("HEADRACE_API_KEYS") or key
    servers = [valkey.command()] if valkey else []
    model_url = None
    if demo_model:
        model_port = free_port()
        model_url = f"http://127.0.0.1:{model_port}"
        told["HEADRACE_CONFIG"] = str(write_demo_config(directory.path, settings.pools[0], model_url))
        servers.append(model_command(model_port, told, directory.path / "log"))
    return Stack(
        url=f"http://{_reachable(settings.http_host)}:{http_port}",
        api_key=key,
        redis_url=redis_url,
        metrics_url=f"http://127.0.0.1:{metrics_port}/metrics" if metrics_port else None,
        workers=settings.workers,
        valkey=valkey,
        model_url=model_url,
        servers=tuple(servers),
        processes=_processes(settings, told, directory.path / "log", metrics_port),
    )


def _processes(settings: Settings, told: dict[str, str], logs: Path, metrics_port: int) -> tuple[Command, ...]:
    grace_s = settings.drain_s + _KILL_AFTER_DRAIN_S

    def process(name: str, module: str, stage: int, port: int) -> Command:
        environ = {**told, "HEADRACE_METRICS_PORT": str(port)}
        log = logs / f"{name}.log"
        # A worker that was drained has left for good; nobody tells a gateway or a scheduler to go.
        return Command(name, python_words(module), log, stage, grace_s, environ, may_leave=stage == WORKER_STAGE)

    workers = [f"worker-{number}" for number in range(1, settings.workers + 1)]
    return (
        process("gateway", "gateway", GATEWAY_STAGE, metrics_port),
        process("scheduler", "scheduler", SCHEDULER_STAGE, free_port() if metrics_port else 0),
        *(process(name, "workers", WORKER_STAGE, free_port() if metrics_port else 0) for name in workers),
    )


def api_key(settings: Settings, data_directory: Path) -> str | None:
    """The key to call with, None where none is asked for: the first of the settings, or one made once and then kept.

    Kept, because a key is a tenant, and jobs that outlive a restart would otherwise belong to a tenant without a key.
    """
    if settings.auth == "off":
        return None
    if settings.api_keys:
        return settings.api_keys[0].get_secret_value()
    path = data_directory / "api-key"
    if not path.exists():
        write_private(path, f"sk-headrace-{secrets.token_urlsafe(24)}\n")
    return path.read_text(encoding="utf-8").strip()


def write_demo_config(data_directory: Path, pool: str, model_url: str) -> Path:
    """The file that names the little model and the scripted fake; a good one to copy and change."""
    document: dict[str, Any] = {
        "backends": [
            {
                "name": "llamacpp",
                "kind": "llamacpp",
                "base_url": model_url,
                "pool": pool,
                "concurrency": 4,
                "timeout_s": 600,
                "idle_timeout_s": 300,
            },
            {"name": "echo", "kind": "echo", "pool": pool},
        ],
        "models": {
            DEMO_MODEL: {
                "targets": [{"backend": "llamacpp", "model": "SmolLM2-135M-Instruct"}],
                "context_tokens": 2048,
            },
            "echo": {"targets": [{"backend": "echo", "model": "echo"}]},
        },
    }
    path = data_directory / "demo.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def write_state(stack: Stack, data_directory: Path) -> Path:
    """Notes where the running stack is, so that the other commands find it without being told."""
    path = data_directory / "up.json"
    state = {
        "url": stack.url,
        "key": stack.api_key,
        "redis_url": stack.redis_url,
        "config": stack.processes[0].environ.get("HEADRACE_CONFIG"),
        "pid": os.getpid(),
    }
    write_private(path, json.dumps(state))
    return path


def _metrics_port(settings: Settings) -> int:
    """The gateway's: as set, with 0 for none; unless set, the usual one or, where that is taken, any other."""
    if settings.metrics_port == 0:
        return 0
    if settings.metrics_port is not None:
        return _taken_never("127.0.0.1", settings.metrics_port, "HEADRACE_METRICS_PORT")
    return GATEWAY_METRICS_PORT if is_free("127.0.0.1", GATEWAY_METRICS_PORT) else free_port()


def _taken_never(host: str, port: int, name: str) -> int:
    if port == 0:
        return free_port(host)
    if not is_free(host, port):
        raise Trouble(
            f"port {port} on {host} can't be listened on (is something there already?); set {name} to another",
            Exit.UNAVAILABLE,
        )
    return port


def _reachable(host: str) -> str:
    """The host to put in a URL for callers on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    return f"[{host}]" if ":" in host else host
