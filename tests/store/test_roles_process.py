"""A scheduler as a process: it outlives its store, does its work with another beside it, and ends when told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.redis_server import RedisServer, binaries, free_port
from tests.support.seeds import a_job, rig, view

CONFIG = """
backends: [{name: echo, kind: echo}]
models: {m: {targets: [{backend: echo, model: echo}]}}
"""
ROOT = Path(__file__).parents[2]


class SchedulerProcess:
    """One scheduler, with its log and its metrics."""

    def __init__(self, directory: Path, redis_url: str, **settings: str) -> None:
        self.port = free_port()
        self.log = directory / f"scheduler-{self.port}.log"
        config = directory / "headrace.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        ours = {
            "HEADRACE_CONFIG": str(config),
            "HEADRACE_REDIS_URL": redis_url,
            "HEADRACE_DATABASE_URL": f"sqlite+aiosqlite:///{directory / 'ledger.db'}",
            "HEADRACE_METRICS_PORT": str(self.port),
            "HEADRACE_LEASE_S": "1",
            "HEADRACE_PROBE_INTERVAL_S": "0.2",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scheduler"], env=kept | ours | settings, stderr=log, cwd=ROOT
            )

    def rounds(self, role: str, result: str = "done") -> float:
        """How many rounds of this role ended so; 0 while the process doesn't answer."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text
        except httpx.TransportError:
            return 0
        name = f'headrace_rounds_total{{result="{result}",role="{role}"}} '
        return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(20)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


@contextmanager
def _scheduler(directory: Path, redis_url: str, **settings: str) -> Generator[SchedulerProcess]:
    scheduler = SchedulerProcess(directory, redis_url, **settings)
    try:
        yield scheduler
    finally:
        scheduler.process.kill()
        scheduler.process.wait(20)


def _until(true: Callable[[], object], limit_s: float = 20) -> None:
    """Waits for a state. Raises TimeoutError after the limit."""
    limit = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError
        time.sleep(0.02)


@pytest.mark.lengthy
@pytest.mark.timeout(60)
def test_it_waits_for_its_store_outlives_it_and_ends_with_0(tmp_path: Path) -> None:
    server = RedisServer(binaries()["valkey"], tmp_path)
    with _scheduler(tmp_path, server.url) as scheduler:
        try:
            _until(lambda: scheduler.rounds("promoter", "store_unavailable") > 0)
            for _ in range(2):
                done = scheduler.rounds("promoter")
                server.start()
                _until(lambda done=done: scheduler.rounds("promoter") > done)
                failed = scheduler.rounds("promoter", "store_unavailable")
                server.kill()
                _until(lambda failed=failed: scheduler.rounds("promoter", "store_unavailable") > failed)
            assert scheduler.stop() == 0
        finally:
            server.stop()
        said = scheduler.said()
        began, ended = said.count("scheduler.store_trouble"), said.count("scheduler.store_back")
        # Three at least: a round that went through at the moment of a kill may be heard of after one that failed.
        assert began >= 3
        assert began - ended in {0, 1}
        assert "scheduler.round_failed" not in said


@pytest.mark.either_server
@pytest.mark.lengthy
@pytest.mark.timeout(60)
async def test_two_schedulers_do_all_roles_work_once_and_the_other_goes_on_when_one_is_killed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with _scheduler(tmp_path, redis_server.url) as first, _scheduler(tmp_path, redis_server.url) as second:
        async with rig(redis_server) as r:
            await r.submit(*(a_job(number, deadline_in_ms=50) for number in range(10)))
            await r.submit(*(a_job(number, delay_ms=50) for number in range(10, 20)))
            _until(lambda: view(redis_server).stats.get("expired") == 10 and not view(redis_server).delayed)
            _until(lambda: all(one.rounds("gauges") and one.rounds("janitor") for one in (first, second)))
            first.process.kill()
            await r.worker("silent", lease_s=0.2)
            assert len(await r.claim(3, "silent")) == 3
            _until(lambda: len(view(redis_server).lanes["0:m"]) == 10)
            assert (await r.queue.stats("default"))["expired"] == 10
        assert second.stop(signal.SIGINT) == 0
        for one in (first, second):
            assert "scheduler.round_failed" not in one.said()


@pytest.mark.lengthy
def test_a_wrong_setting_is_told_in_one_line_with_status_2(tmp_path: Path) -> None:
    with _scheduler(tmp_path, "redis://127.0.0.1:1/0", HEADRACE_LEASE_S="soon") as scheduler:
        assert scheduler.process.wait(25) == 2
        assert scheduler.said().startswith("headrace: ")
        assert "HEADRACE_LEASE_S" in scheduler.said() and scheduler.said().count("\n") == 1


@pytest.mark.lengthy
@pytest.mark.timeout(60)
def test_a_taken_metrics_port_is_told_with_status_1(tmp_path: Path) -> None:
    with _scheduler(tmp_path, "redis://127.0.0.1:1/0") as first:
        _until(lambda: first.rounds("promoter", "store_unavailable") > 0)
        with _scheduler(tmp_path, "redis://127.0.0.1:1/0", HEADRACE_METRICS_PORT=str(first.port)) as second:
            assert second.process.wait(25) == 1
            assert "scheduler.cannot_listen" in second.said()
