"""`headrace doctor`: looks at settings, Redis, clocks and backends, and says for each fault what mends it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from common.config import DEFAULT_REDIS_URL, ConfigError, Settings, load
from common.errors import HeadraceError, LedgerUnavailable
from common.inspection import StoreFacts, inspect
from common.ledger.database import Database
from common.servers import Backend
from common.store import Store
from deploy.local.client import data_directory, state_of_up
from scheduler.prober import key_headers

MOST_SKEW_S: Final = 1.0
FULL_SHARE: Final = 0.8
OLDEST_VERSION: Final = {"redis": (7,), "valkey": (8,)}
_BACKEND_LIMIT_S: Final = 5.0
# Where a kind lists its models, if not where OpenAI does; hosted ones tell a page of them at a time.
MODELS_PATHS: Final = {
    "ollama": "/api/tags",
    "anthropic": "/v1/models?limit=1000",
    "gemini": "/v1beta/models?pageSize=1000",
    "cohere": "/v1/models?page_size=1000",
}

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `mend` says what to do unless all is well."""

    level: Level
    subject: str
    what: str
    mend: str = ""


async def examine() -> list[Finding]:
    """Everything found, in the order looked at."""
    running = state_of_up(data_directory())
    try:
        # Beside a running `headrace up` its settings are meant, and not the defaults.
        settings = load({"HEADRACE_CONFIG": running["config"], **os.environ} if running.get("config") else None)
    except ConfigError as error:
        return [Finding("failure", "settings", str(error), "correct that name or value; README has the table")]
    store_findings, ledger_finding, backend_findings = await asyncio.gather(
        _examine_store(settings, running.get("redis_url")), _examine_ledger(settings), _examine_backends(settings)
    )
    return [*judge_settings(settings), *store_findings, ledger_finding, *backend_findings]


# --- settings --------------------------------------------------------------------------------------------------------


def judge_settings(settings: Settings) -> list[Finding]:
    """What can be told from the settings alone."""
    found = [Finding("ok", "settings", f"{len(settings.backends)} backends, {len(settings.models)} models")]
    if not settings.models:
        found = [
            Finding("warning", "settings", "no models are configured", "name backends and models in headrace.yaml")
        ]
    if settings.auth == "off":
        found.append(Finding("warning", "auth", "requests need no key", "unset HEADRACE_AUTH before others get access"))
    unserved = sorted(set(settings.pool_by_model.values()) - set(settings.pools))
    if unserved:
        what = f"models are queued in pools that a worker with these settings does not serve: {', '.join(unserved)}"
        found.append(Finding("warning", "pools", what, "run workers with HEADRACE_POOLS naming them"))
    return found


# --- the store -------------------------------------------------------------------------------------------------------


async def _examine_store(settings: Settings, running: str | None) -> list[Finding]:
    url = settings.redis_url or running or DEFAULT_REDIS_URL
    store = Store.from_url(url)
    try:
        facts = await inspect(store)
    except HeadraceError as error:
        what = f"{without_password(url)}: {error}"
        return [Finding("failure", "redis", what, "start it, or set HEADRACE_REDIS_URL to where it is")]
    finally:
        await store.close()
    return judge_store(facts)


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def judge_store(facts: StoreFacts) -> list[Finding]:
    """What the store's facts mean for the promises that jobs survive."""
    return [_judge_version(facts), _judge_aof(facts), *_judge_memory(facts), _judge_clock(facts), _judge_keys(facts)]


def _judge_version(facts: StoreFacts) -> Finding:
    needed = OLDEST_VERSION.get(facts.server, OLDEST_VERSION["redis"])
    what = f"{facts.server} {facts.version_text}"
    if facts.version >= needed:
        return Finding("ok", "redis version", what)
    return Finding("failure", "redis version", what, "upgrade: Redis 7 or newer, or Valkey 8 or newer, is needed")


def _judge_aof(facts: StoreFacts) -> Finding:
    if not facts.aof_enabled:
        what = "no append-only file: accepted jobs are lost when the server restarts"
        return Finding("failure", "redis AOF", what, "set `appendonly yes` and `appendfsync everysec`")
    if not facts.aof_healthy:
        what = "the last write to the append-only file failed"
        return Finding("failure", "redis AOF", what, "look for a full disk or wrong permissions in the server's log")
    return Finding("ok", "redis AOF", "on")


def _judge_memory(facts: StoreFacts) -> list[Finding]:
    found = [Finding("ok", "redis eviction", facts.eviction)]
    if facts.eviction != "noeviction":
        what = f"{facts.eviction}: a full server would throw jobs away"
        found = [Finding("failure", "redis eviction", what, "set `maxmemory-policy noeviction`")]
    if facts.maxmemory_bytes and facts.used_memory_bytes > FULL_SHARE * facts.maxmemory_bytes:
        share = facts.used_memory_bytes / facts.maxmemory_bytes
        mend = "raise `maxmemory`, or shorten HEADRACE_RESULT_RETENTION_S"
        found.append(Finding("warning", "redis memory", f"{share:.0%} of maxmemory is used", mend))
    return found


def _judge_clock(facts: StoreFacts) -> Finding:
    if abs(facts.clock_skew_s) <= MOST_SKEW_S:
        return Finding("ok", "redis clock", "in step with this machine's")
    what = f"{abs(facts.clock_skew_s):.1f} s {'ahead of' if facts.clock_skew_s > 0 else 'behind'} this machine's"
    return Finding("failure", "redis clock", what, "let NTP (chrony, systemd-timesyncd) set both machines' clocks")


def _judge_keys(facts: StoreFacts) -> Finding:
    if not facts.without_ttl:
        return Finding("ok", "redis keys", f"{facts.sampled_keys} looked at, all that should expire will")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(facts.without_ttl.items()))
    mend = "is something else writing keys here? Give Headrace a database of its own; else report this as a bug"
    return Finding("failure", "redis keys", f"will never expire: {kinds} (of {facts.sampled_keys} looked at)", mend)


# --- the ledger ------------------------------------------------------------------------------------------------------


async def _examine_ledger(settings: Settings) -> Finding:
    if settings.journal == "off":
        mend = "set HEADRACE_JOURNAL=on, so that accepted jobs survive a Redis that loses everything"
        return Finding("warning", "ledger", "the journal is off: Redis alone knows the accepted jobs", mend)
    try:
        database = Database.of(settings)
    except ConfigError as error:
        return Finding("failure", "ledger", str(error), "correct it; README has the table")
    if database.is_sqlite and not await asyncio.to_thread(Path(database.url.database or "").exists):
        what = f"SQLite, not there yet: {database.shown}"
        return Finding("ok", "ledger", f"{what}; the first process to start makes it")
    try:
        return judge_ledger(database, await database.revision())
    except LedgerUnavailable as error:
        return Finding("failure", "ledger", f"{database.shown}: {error}", "start it, or correct HEADRACE_DATABASE_URL")
    finally:
        await database.close()


def judge_ledger(database: Database, revision: str | None) -> Finding:
    """What the database behind the ledger is, and whether its tables are there."""
    kind = "SQLite, for processes of this machine only" if database.is_sqlite else "PostgreSQL"
    if revision is None:
        mend = "run `headrace migrate`, or just start a gateway or a scheduler"
        return Finding("warning", "ledger", f"{kind}: {database.shown} has no tables yet", mend)
    return Finding("ok", "ledger", f"{kind}: {database.shown}, revision {revision}")


# --- backends --------------------------------------------------------------------------------------------------------


async def _examine_backends(settings: Settings) -> list[Finding]:
    async with httpx.AsyncClient(timeout=_BACKEND_LIMIT_S, follow_redirects=False) as client:
        asked = (_examine_backend(client, settings, backend) for backend in settings.backends if backend.url)
        found = await asyncio.gather(*asked)
    return [finding for findings in found for finding in findings]


async def _examine_backend(client: httpx.AsyncClient, settings: Settings, backend: Backend) -> list[Finding]:
    subject = f"backend {backend.name}"
    wanted = models_wanted(settings, backend)
    keys = [key.get_secret_value() for key in backend.api_keys] or [None]
    return [
        await _ask_backend(client, backend, wanted, key, subject if len(keys) == 1 else f"{subject}, key {number}")
        for number, key in enumerate(keys, start=1)
    ]


async def _ask_backend(
    client: httpx.AsyncClient, backend: Backend, wanted: Sequence[str], key: str | None, subject: str
) -> Finding:
    path = MODELS_PATHS.get(backend.kind) or backend.path_of("/v1/models")
    try:
        answer = await client.get(backend.url + path, headers=key_headers(backend.kind, key))
    except httpx.TransportError as error:
        what = f"{backend.url} can't be reached ({str(error) or type(error).__name__})"
        return Finding("failure", subject, what, "start it, or correct its base_url")
    try:
        document = answer.json()
    except ValueError:
        document = None
    return judge_backend(backend, wanted, subject=subject, status=answer.status_code, document=document)


def judge_backend(backend: Backend, wanted: Sequence[str], *, subject: str, status: int, document: object) -> Finding:
    """What a backend's answer to the question for its models means."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return Finding("failure", subject, f"{backend.url} refused the key ({status})", "correct its api_keys")
    if status != HTTPStatus.OK:
        return Finding("failure", subject, f"{backend.url} answered {status}", "look at its own log")
    known = models_known(document)
    missing = [] if backend.kind == "llamacpp" else [name for name in wanted if name not in known]  # it takes any name
    if missing:
        what = f"does not have {', '.join(missing)}"
        return Finding("failure", subject, what, f"load it there, or name one it has: {', '.join(sorted(known)[:8])}")
    return Finding("ok", subject, f"{backend.url} answers; it has {', '.join(sorted(known)[:4]) or 'no models'}")


def models_wanted(settings: Settings, backend: Backend) -> list[str]:
    """The names by which our models ask this backend."""
    targets = (target for model in settings.models.values() for target in model.targets)
    return sorted({target.model for target in targets if target.backend == backend.name})


def models_known(document: Any) -> set[str]:
    """The model names in an answer of any kind's shape; `name:latest` and `models/name` are known as `name` too."""
    try:
        rows: list[Any] = document.get("data") or document.get("models") or []
        names = {str(row.get("id") or row.get("name")) for row in rows}
    except AttributeError:
        return set()
    return names | {name.removeprefix("models/").removesuffix(":latest") for name in names}
