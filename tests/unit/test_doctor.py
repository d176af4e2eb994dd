"""What `headrace doctor` makes of the facts, and what it says mends each fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.catalogue import Model, Target
from common.config import Settings
from common.inspection import StoreFacts, parse_info
from common.servers import Backend
from deploy.local.doctor import (
    judge_backend,
    judge_settings,
    judge_store,
    models_known,
    models_wanted,
    without_password,
)

GOOD = StoreFacts(
    server="redis",
    version=(7, 0, 15),
    aof_enabled=True,
    aof_healthy=True,
    eviction="noeviction",
    maxmemory_bytes=0,
    used_memory_bytes=1_000_000,
    clock_skew_s=0.1,
    sampled_keys=12,
    without_ttl={},
)
GPU = Backend(name="gpu", kind="vllm", base_url="http://gpu:8000/v1")


def test_a_sound_store_has_nothing_to_mend() -> None:
    assert {finding.level for finding in judge_store(GOOD)} == {"ok"}


@pytest.mark.parametrize(
    ("change", "subject", "level", "mend"),
    [
        ({"version": (6, 2, 14)}, "redis version", "failure", "Redis 7"),
        ({"server": "valkey", "version": (7, 2, 5)}, "redis version", "failure", "Valkey 8"),
        ({"aof_enabled": False}, "redis AOF", "failure", "appendonly yes"),
        ({"aof_healthy": False}, "redis AOF", "failure", "full disk"),
        ({"eviction": "allkeys-lru"}, "redis eviction", "failure", "noeviction"),
        ({"maxmemory_bytes": 1_100_000}, "redis memory", "warning", "maxmemory"),
        ({"clock_skew_s": -2.5}, "redis clock", "failure", "NTP"),
        ({"clock_skew_s": 2.5}, "redis clock", "failure", "NTP"),
        ({"without_ttl": {"job": 3}}, "redis keys", "failure", "database of its own"),
    ],
)
def test_each_fault_of_the_store_is_found_alone_and_has_its_remedy(
    change: dict[str, Any], subject: str, level: str, mend: str
) -> None:
    findings = [finding for finding in judge_store(replace(GOOD, **change)) if finding.level != "ok"]
    assert [(finding.subject, finding.level) for finding in findings] == [(subject, level)]
    assert mend in findings[0].mend


def test_memory_below_the_mark_is_no_fault() -> None:
    assert {finding.level for finding in judge_store(replace(GOOD, maxmemory_bytes=2_000_000))} == {"ok"}


@pytest.mark.parametrize(
    ("status", "document", "level", "words"),
    [
        (200, {"data": [{"id": "llama"}]}, "ok", "it has llama"),
        (200, {"data": [{"id": "other"}]}, "failure", "does not have llama"),
        (401, None, "failure", "refused the key"),
        (500, None, "failure", "answered 500"),
        (200, None, "failure", "does not have llama"),
        (200, ["odd"], "failure", "does not have llama"),
    ],
)
def test_a_backends_answer_is_judged(status: int, document: object, level: str, words: str) -> None:
    finding = judge_backend(GPU, ["llama"], subject="backend gpu", status=status, document=document)
    assert finding.level == level
    assert words in finding.what


def test_a_llamacpp_server_takes_any_model_name() -> None:
    backend = Backend(name="local", kind="llamacpp", base_url="http://localhost:9000")
    finding = judge_backend(backend, ["x"], subject="s", status=200, document={"data": [{"id": "file.gguf"}]})
    assert finding.level == "ok"


def test_ollamas_names_are_known_with_and_without_the_latest_tag() -> None:
    assert models_known({"models": [{"name": "llama3:latest"}]}) == {"llama3", "llama3:latest"}


def test_geminis_names_are_known_with_and_without_their_collection() -> None:
    assert models_known({"models": [{"name": "models/gemini-x"}]}) == {"gemini-x", "models/gemini-x"}


def test_the_models_wanted_of_a_backend_are_those_its_targets_name() -> None:
    other = Backend(name="other", kind="vllm", base_url="http://other:8000")
    models = {
        "a": Model(targets=(Target(backend="gpu", model="llama"), Target(backend="other", model="x"))),
        "b": Model(targets=(Target(backend="gpu", model="gemma"),)),
    }
    assert models_wanted(Settings(backends=(GPU, other), models=models), GPU) == ["gemma", "llama"]


def test_a_pool_that_no_worker_serves_is_told() -> None:
    backend = Backend(name="gpu", kind="echo", pool=("gpu",))
    settings = Settings(backends=(backend,), models={"a": Model(targets=(Target(backend="gpu", model="x"),))})
    findings = [finding for finding in judge_settings(settings) if finding.level != "ok"]
    assert [finding.subject for finding in findings] == ["pools"]
    assert "HEADRACE_POOLS" in findings[0].mend


def test_settings_without_models_are_told() -> None:
    assert [finding.level for finding in judge_settings(Settings())] == ["warning"]


def test_info_is_read_by_its_names() -> None:
    raw = b"# Server\r\nredis_version:7.0.15\r\n\r\n# Persistence\r\naof_enabled:1\r\nexecutable:/a:b\r\n"
    assert parse_info(raw) == {"redis_version": "7.0.15", "aof_enabled": "1", "executable": "/a:b"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/2", "redis://host:6379/2"),
        ("rediss://:p%40ss@host:6379/0?password=secret", "rediss://host:6379/0"),
        ("unix:///tmp/valkey.sock?db=0", "unix:///tmp/valkey.sock"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
