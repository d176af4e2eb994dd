"""What clients with their own Python environment meet: a fleet with a scripted, an obedient and a real little model.

No conftest.py above this one is read, so that these environments need little beside the clients.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.journeys.clients.apart.obedient import answer
from tests.support.fleet import KEY, PYTHON, ROOT, Fleet, until
from tests.support.redis_server import free_port
from tests.support.upstream import Upstream

CONFIG = """
backends:
  - {name: echo, kind: echo}
  - {name: obedient, kind: openai, base_url: "${HEADRACE_TEST_OBEDIENT}"}
  - {name: llamacpp, kind: llamacpp, base_url: "${HEADRACE_TEST_REAL}", health_path: "", timeout_s: 120}
models:
  echo: {targets: [{backend: echo, model: echo}]}
  obedient: {targets: [{backend: obedient, model: obedient-1}], aliases: [obedient-too]}
  smollm2: {targets: [{backend: llamacpp, model: SmolLM2-135M-Instruct}], context_tokens: 2048}
"""
# Where the wheel of the little model keeps it, found by the environment that has it.
FILE_WORDS = "from deploy.local.embedded import model_file; print(model_file())"

collect_ignore_glob = [] if os.environ.get("HEADRACE_TEST_PYTHON") else ["test_*.py"]  # ./just clients sets it
RUNNER = pytest.StashKey[asyncio.Runner]()


def pytest_configure(config: pytest.Config) -> None:
    """Names the marker by which recipes choose elsewhere."""
    config.addinivalue_line("markers", "lengthy: takes seconds that nothing can shorten")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs coroutine tests of these clients on one loop for all, as in a program: some keep connections for ever."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    words = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    runner = pyfuncitem.config.stash.setdefault(RUNNER, asyncio.Runner())
    runner.run(pyfuncitem.obj(**words))
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends that loop."""
    if (runner := config.stash.get(RUNNER, None)) is not None:
        runner.close()


@pytest.fixture(scope="session")
def obedient() -> Iterator[str]:
    """The address of a model that does as it is told, in a thread of its own."""
    listening, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    upstream = Upstream(answer)

    async def serve() -> None:
        async with upstream.running():
            listening.set()
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listening.wait(10)
    yield upstream.url
    loop.call_soon_threadsafe(ending.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def real_port() -> int:
    """Where the real model will be, if a test asks for it."""
    return free_port()


@pytest.fixture(scope="session")
def _served_fleet(obedient: str, real_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(
        tmp_path_factory.mktemp("served"),
        gateways=2,
        config=CONFIG,
        breaker_failures=10_000,  # tests have the echo backend fail for each other
        test_obedient=obedient,
        test_real=f"http://127.0.0.1:{real_port}",
    )
    try:
        yield fleet.start()
    finally:
        fleet.stop()


@pytest.fixture
def served(_served_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet. Whatever a client does to it, no process may log an error or a traceback."""
    before = {name: len(member.log()) for name, member in _served_fleet.members.items()}
    yield _served_fleet
    for name, member in _served_fleet.members.items():
        new = member.log()[before[name] :]
        assert '"level":"error"' not in new and "Traceback" not in new, f"{name}:\n{new}"


@pytest.fixture
def at(served: Fleet) -> SimpleNamespace:
    """Where to send what: `root`, OpenAI's `v1`, and a `key`."""
    return SimpleNamespace(root=served.url(), v1=served.url() + "/v1", key=KEY)


@pytest.fixture(scope="session")
def real_model(real_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the real little model, once its llama.cpp answers."""
    found = subprocess.run([PYTHON, "-c", FILE_WORDS], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("the little model is not installed here")
    log = tmp_path_factory.mktemp("llamacpp") / "model.log"
    words = [PYTHON, "-P", "-m", "deploy.local.model", "--file", found.stdout.strip(), "--port", str(real_port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=output
        )
    try:
        until(lambda: _answers(process, real_port, log), 60, "llama.cpp did not get ready")
        yield "smollm2"
    finally:
        process.terminate()
        process.wait(15)


def _answers(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")[-2000:]
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(params=["echo", "llamacpp"])
def any_model(request: pytest.FixtureRequest) -> str:
    """A model's name: what a test with it asserts holds for every model."""
    return "echo" if request.param == "echo" else request.getfixturevalue("real_model")
