"""`headrace up` from outside: what it prints, what survives, what it leaves behind, and the commands beside it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.up import Up, headrace, processes_with

pytestmark = pytest.mark.timeout(120)

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def new_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Makes an `up`; each is ended with the test."""
    made: list[Up] = []

    def make(**environ: str) -> Up:
        made.append(Up(tmp_path, **environ))
        return made[-1]

    yield make
    for one in made:
        one.clean()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that tests only talk to."""
    up = Up(tmp_path_factory.mktemp("up")).start()
    yield up
    up.clean()


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One whose parts are killed, one in each test."""
    up = Up(tmp_path_factory.mktemp("sturdy")).start()
    yield up
    up.clean()


def until(probe: Callable[[], Any], limit_s: float = 30) -> Any:
    limit = time.monotonic() + limit_s
    while not (answer := probe()):
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.02)
    return answer


def nothing_left(up: Up) -> bool:
    return processes_with(str(up.data)) == {}


def submit(client: httpx.Client, **more: Any) -> str:
    answer = client.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": CHAT, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def record(client: httpx.Client, job_id: str) -> dict[str, Any]:
    return client.get(f"/v1/jobs/{job_id}").json()


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    return until(lambda: (found := record(client, job_id))["finished_at"] and found)


# --- what it says and answers ----------------------------------------------------------------------------------------


def test_it_prints_where_it_is_with_which_key_and_that_it_is_ready(shared: Up) -> None:
    said = shared.output.read_text()
    url = f"http://127.0.0.1:{shared.environ['HEADRACE_HTTP_PORT']}"
    assert f"base URL  {url}/v1" in said
    assert f"API key   {shared.state['key']}" in said
    assert said.splitlines()[-1] == f"headrace: ready on {url}"


def test_it_answers_with_the_key_and_not_without(shared: Up) -> None:
    with shared.client() as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, shared.told()
        assert "three" in answer.json()["choices"][0]["message"]["content"]
        del client.headers["authorization"]
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 401


def test_a_second_one_cannot_have_the_same_data(shared: Up) -> None:
    other = headrace("up", environ={**shared.environ, "HEADRACE_HTTP_PORT": "0"})
    assert other.returncode == 3
    assert "in use by another" in other.stderr


def test_the_commands_beside_it_find_it_by_its_note(shared: Up) -> None:
    submitted = headrace("submit", "four five six", environ=shared.environ)
    assert submitted.returncode == 0, submitted.stderr
    watched = headrace("watch", submitted.stdout.strip(), environ=shared.environ)
    assert watched.returncode == 0, watched.stderr
    assert "four five six" in watched.stdout
    shown = headrace("top", "--once", environ=shared.environ)
    assert shown.returncode == 0, shown.stderr
    assert "default" in shown.stdout
    assert "echo" in shown.stdout


def test_submit_with_watch_prints_the_answer_and_only_the_answer(shared: Up) -> None:
    result = headrace("submit", "--watch", "--model", "echo", "seven eight", environ=shared.environ)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "seven eight"
    assert result.stderr.startswith("job_default_")


def test_doctor_finds_nothing_to_mend_beside_it(shared: Up) -> None:
    result = headrace("doctor", environ=shared.environ)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all is well" in result.stdout
    assert "noeviction" in result.stdout


def test_a_job_that_is_unknown_is_refused_in_words(shared: Up) -> None:
    result = headrace("watch", "job_default_00000000000000000000000000000000", environ=shared.environ)
    assert result.returncode == 1
    assert "404" in result.stderr


# --- ending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_nothing_is_left(new_up: Callable[..., Up], number: signal.Signals) -> None:
    up = new_up(HEADRACE_WORKERS="2").start()
    assert len(up.children()) == 5
    assert up.end(number) == 0, up.told()
    assert nothing_left(up)
    assert not (up.data / "up.json").exists()


def test_a_kill_without_warning_leaves_nothing_either(new_up: Callable[..., Up]) -> None:
    up = new_up().start()
    up.end(signal.SIGKILL)
    until(lambda: nothing_left(up))


# --- surviving -------------------------------------------------------------------------------------------------------


def ended_and_started_again(up: Up, number: signal.Signals) -> str:
    """The job that ran when this signal came; one that had ended and one that waited are what they were before."""
    slow = {"model": "echo", "messages": [{"role": "user", "content": 'echo: {"tokens": 30, "token_ms": 50}'}]}
    with up.start().client() as client:
        done, waiting = submit(client), submit(client, delay_ms=2_000)
        result = ended(client, done)["result"]
        running = submit(client, body=slow)
        until(lambda: record(client, running)["status"] == "running")
    assert up.end(number) == (-number if number == signal.SIGKILL else 0), up.told()
    until(lambda: nothing_left(up))
    with up.start().client() as client:
        assert record(client, done)["result"] == result
        assert ended(client, waiting)["status"] == "succeeded"
    return running


def test_jobs_survive_a_kill_without_warning_and_belong_to_the_same_key(new_up: Callable[..., Up]) -> None:
    up = new_up()
    running = ended_and_started_again(up, signal.SIGKILL)
    with up.client() as client:
        assert ended(client, running)["status"] in ("succeeded", "failed")


def test_running_work_ends_before_it_stops_and_jobs_survive_a_restart(new_up: Callable[..., Up]) -> None:
    up = new_up()
    running = ended_and_started_again(up, signal.SIGTERM)
    with up.client() as client:
        found = record(client, running)
        assert (found["status"], found["attempt"]) == ("succeeded", 1), found


@pytest.mark.parametrize("words", ["-m workers", "-m gateway", "-m scheduler", "valkey-server"])
def test_a_part_that_dies_is_started_again_and_work_goes_on(sturdy: Up, words: str) -> None:
    up, said = sturdy, "ended with signal SIGKILL; starting it again"
    before = up.output.read_text().count(said)
    os.kill(up.child(words), signal.SIGKILL)
    until(lambda: up.output.read_text().count(said) > before)

    def works() -> bool:
        try:
            with up.client() as client:
                return client.post("/v1/chat/completions", json=CHAT, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    until(works)
    until(lambda: any(words in line for line in up.children().values()))


def test_a_worker_that_is_drained_leaves_and_is_not_started_again(new_up: Callable[..., Up]) -> None:
    up = new_up(HEADRACE_WORKERS="2").start()
    with up.client() as client:
        name = until(lambda: [row["id"] for row in client.get("/workers").json()])[0]
        answer = headrace("drain", name, environ=up.environ)
        assert (answer.returncode, answer.stdout) == (0, f"headrace: {name} drains\n")
        up.wait_for("was drained and has left; it is not started again")
        assert name not in [row["id"] for row in client.get("/workers").json()]
        until(lambda: len([words for words in up.children().values() if "-m workers" in words]) == 1)
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert headrace("drain", name, environ=up.environ).returncode == 1
        assert headrace("dead", environ=up.environ).stdout == ""
