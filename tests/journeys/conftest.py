"""One fleet for all journeys that only talk to it: two gateways, and what is said to them as real clients would."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

from tests.support.fleet import KEY, OTHER_KEY, ROOT, Fleet, until
from tests.support.grpc_client import Caller, caller
from tests.support.upstream import HANG, Reply, Request, Upstream

# `unserved` waits in a pool that no worker serves, `narrow` in one whose worker does one job at a time.
CONFIG = """
backends:
  - {name: echo, kind: echo}
  - {name: echo-idle, kind: echo, pool: idle}
  - {name: echo-narrow, kind: echo, pool: narrow}
  - {name: remote, kind: vllm, base_url: "${HEADRACE_TEST_REMOTE}"}
models:
  echo: {targets: [{backend: echo, model: echo}], price: {input: 1, output: 2}}
  org/echo:8b: {targets: [{backend: echo, model: echo}]}
  capped: {targets: [{backend: echo, model: echo}], max_tokens: 16}
  unserved: {targets: [{backend: echo-idle, model: echo}]}
  crowded: {targets: [{backend: echo-idle, model: echo}]}
  narrow: {targets: [{backend: echo-narrow, model: echo}]}
  remote: {targets: [{backend: remote, model: some-model}]}
tenants:
  few: {api_keys: [hr-test-key-of-who-may-have-few], max_waiting_jobs: 2}
"""
FEW_KEY = "hr-test-key-of-who-may-have-few"
KEYS = (KEY, OTHER_KEY, FEW_KEY)
POOLS = ("default", "idle", "narrow")
TOKEN = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]}\n\n'
GRACE_S = 1
STATUS_WAIT_S = 0.8
MOST_WAITING = 40


class Page(SimpleHTTPRequestHandler):
    """The folder of examples, as any web server would give it out; says nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The origin that gives out the example page."""
    serve = partial(Page, directory=str(ROOT / "deploy" / "examples"))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _silent(request: Request) -> Reply:
    """Healthy; says one token of a stream, and of the rest nothing at all."""
    if request.method == "GET":
        return Reply([b"{}"], content_type="application/json", chunked=False)
    return Reply([TOKEN, HANG] if request.json().get("stream") else [HANG])


class SilentModel(Upstream):
    """A model server that hangs after its first token; it counts the calls that hang."""

    def __init__(self) -> None:
        super().__init__(_silent)
        self.hanging = 0

    async def _send(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        hangs = HANG in reply.steps
        self.hanging += hangs
        try:
            return await super()._send(reply, reader, writer)
        finally:
            self.hanging -= hangs


@pytest.fixture(scope="session")
def _remote() -> Iterator[SilentModel]:
    """The server behind the model `remote`, in a thread of its own."""
    upstream = SilentModel()
    listening, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with upstream.running():
            listening.set()
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listening.wait(10)
    yield upstream
    loop.call_soon_threadsafe(ending.set)
    thread.join()
    loop.close()


@pytest.fixture
def remote(_remote: SilentModel) -> SilentModel:
    """The server behind the model `remote`; no call of an earlier test hangs there any more."""
    until(lambda: _remote.hanging == 0, what="a call of an earlier test is still there")
    return _remote


@pytest.fixture(scope="session")
def _shared_fleet(site: str, _remote: SilentModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(
        tmp_path_factory.mktemp("fleet"),
        gateways=2,
        config=CONFIG,
        lease_s=2,
        disconnect_grace_s=GRACE_S,
        status_wait_s=STATUS_WAIT_S,
        keepalive_s=0.3,
        request_timeout_s=2,
        max_lane_depth=MOST_WAITING,
        breaker_failures=10_000,  # tests have this backend fail for each other
        cors_origins=site,
        test_remote=_remote.url,
    )
    fleet.add("worker-narrow", "workers", pools="narrow", worker_concurrency=1)
    try:
        yield fleet.start()
    finally:
        fleet.stop()


@pytest.fixture
def fleet(_shared_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet. Whatever a test does to it, no process may log an error or a traceback, and no job is left."""
    yield _shared_fleet
    _shared_fleet.cancel_all(*POOLS, keys_of_tenants=KEYS)
    for name, new in _shared_fleet.news().items():
        assert '"level":"error"' not in new and "Traceback" not in new, f"{name}:\n{new}"
        assert _shared_fleet.members[name].runs, f"{name} ended:\n{new}"


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    """A client of the first gateway."""
    with fleet.client(0) as one:
        yield one


@pytest.fixture
def elsewhere(fleet: Fleet) -> Iterator[httpx.Client]:
    """The same caller at the second gateway."""
    with fleet.client(1) as one:
        yield one


@pytest.fixture
def stranger(fleet: Fleet) -> Iterator[httpx.Client]:
    """Another tenant, at the first gateway."""
    with fleet.client(0, key=OTHER_KEY) as one:
        yield one


@pytest.fixture
def rpc(fleet: Fleet) -> Iterator[Caller]:
    """A gRPC caller of the first gateway."""
    with caller(fleet) as one:
        yield one


@pytest.fixture
def rpc_elsewhere(fleet: Fleet) -> Iterator[Caller]:
    """The same caller at the second gateway."""
    with caller(fleet, 1) as one:
        yield one


@pytest.fixture
def sdk(fleet: Fleet) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, given nothing but the base URL and the key."""
    with openai.OpenAI(api_key=KEY, base_url=fleet.url() + "/v1", max_retries=0, timeout=20) as one:
        yield one
