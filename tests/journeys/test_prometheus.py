"""A real Prometheus scrapes a running stack, and every alert and dashboard query is one that it can answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local.child import ROOT
from tests.support.redis_server import free_port
from tests.support.up import Up

PROMETHEUS = shutil.which("prometheus")
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}], "stream": True}
SEEN_AT_ONCE = ("headrace_workers", "headrace_backend_healthy", "headrace_jobs_total", "headrace_ttft_seconds_count")

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)"),
]


def until(probe: Callable[[], Any], limit_s: float = 40) -> Any:
    limit = time.monotonic() + limit_s
    while not (answer := probe()):
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.1)
    return answer


class Prometheus:
    """A server of the test's own that asks these addresses every second."""

    def __init__(self, place: Path, targets: list[str]) -> None:
        shutil.copy(ROOT / "deploy/prometheus/rules.yml", place / "rules.yml")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "headrace", "static_configs": [{"targets": targets}]}],
        }
        (place / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = [
            *(str(PROMETHEUS), f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
        ]
        with (place / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def ask(self, path: str, **params: str) -> Any:
        """The `data` of its answer; nothing while it does not answer yet."""
        try:
            answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=5, trust_env=False)
        except httpx.TransportError:
            return None
        if answer.status_code == 503:  # it has the port and is not ready yet
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any] | None:
        """The series that an expression gives."""
        found = self.ask("query", query=expression)
        return None if found is None else found["result"]

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that scrapes a stack which has answered a request."""
    up = Up(tmp_path_factory.mktemp("up")).start()
    with up.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), [f"127.0.0.1:{port}" for port in metrics_ports(up)])
    yield server
    server.stop()
    up.clean()


def metrics_ports(up: Up) -> list[str]:
    ports: list[str] = []
    for pid in up.children():
        told = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
        ports += [line.decode().partition("=")[2] for line in told if line.startswith(b"HEADRACE_METRICS_PORT=")]
    return ports


def test_every_process_is_scraped_and_shows_its_own(prometheus: Prometheus) -> None:
    assert len(until(lambda: (found := prometheus.query("up == 1")) and len(found) == 3 and found)) == 3
    for name in SEEN_AT_ONCE:
        assert until(lambda name=name: prometheus.query(name)), name


def test_every_alert_can_be_evaluated_and_a_sound_stack_raises_none(prometheus: Prometheus) -> None:
    def evaluated() -> list[Any]:
        groups = (prometheus.ask("rules") or {"groups": []})["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if rules and all(rule["health"] == "ok" for rule in rules) else []

    assert len(until(evaluated)) >= 5
    until(lambda: prometheus.query("headrace_workers"))
    assert [rule["name"] for rule in evaluated() if rule["state"] == "firing"] == []


def test_every_query_of_the_dashboards_is_answered(prometheus: Prometheus) -> None:
    until(lambda: prometheus.query("headrace_workers"))
    boards = [json.loads(path.read_text()) for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")]
    queries = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    for query in queries:
        assert prometheus.query(query.replace("$pool", ".*").replace("$__rate_interval", "1m")) is not None, query
