"""A real vLLM on the CPU in a process of its own, at an address that it keeps over its lives."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx
import orjson

from scheduler.load import gauge
from tests.real.tiny import CONTEXT_TOKENS, write_model
from tests.support.redis_server import free_port

START_LIMIT_S: Final = 400.0
MODEL: Final = "their-model"
MOST_AT_ONCE: Final = 2
"""What it generates at a time; the rest waits, so that its order can be seen."""

_GENERATES: Final = (
    *("--max-num-seqs", str(MOST_AT_ONCE), "--scheduling-policy", "priority", "--enable-prompt-tokens-details"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # Weights made up would write white space for hours where a grammar lets them.
    *("--structured-outputs-config", orjson.dumps({"backend": "xgrammar", "disable_any_whitespace": True}).decode()),
)
_EMBEDS: Final = ("--runner", "pooling", "--convert", "embed")
_SETTINGS: Final = {
    **{"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
    **{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
}


class Vllm:
    """The server: started to generate or to embed, asked for its gauges, ended or killed with all its processes."""

    def __init__(self, python: str, place: Path) -> None:
        self._python = python
        self._place = place
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        write_model(place / "model")

    @property
    def url(self) -> str:
        """Its address, whether it runs or not."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def runs(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None

    def start(self, *, embeds: bool = False) -> float:
        """Starts it; the seconds until it was healthy. Raises AssertionError where it ends, or takes too long."""
        began_s = time.monotonic()
        with (self._place / "vllm.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._words(_EMBEDS if embeds else _GENERATES),
                env={**os.environ, **_SETTINGS, "VLLM_CACHE_ROOT": str(self._place / "cache")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._place,
                start_new_session=True,
            )
        while not self._is_healthy():
            assert self._process.poll() is None, f"vLLM did not start:\n{self.log()[-3000:]}"
            assert time.monotonic() - began_s < START_LIMIT_S, f"vLLM did not get healthy:\n{self.log()[-3000:]}"
            time.sleep(0.2)
        return time.monotonic() - began_s

    def kill(self) -> None:
        """kill -9 of the server and its engine, at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def stop(self) -> None:
        """Ends it; kills what is left after half a minute."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self.kill()

    def gauge(self, name: str) -> int:
        """The value of one of its metrics, `vllm:` left out. Raises AssertionError where it has none of this name."""
        value = gauge(httpx.get(f"{self.url}/metrics", trust_env=False).content, f"vllm:{name}")
        assert value is not None, f"vLLM tells no vllm:{name}"
        return value

    def log(self) -> str:
        """What it has written."""
        return (self._place / "vllm.log").read_text(errors="replace")

    def _words(self, kind: tuple[str, ...]) -> list[str]:
        return [
            *("nice", "-n", "15", self._python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--host", "127.0.0.1", "--port", str(self._port), "--model", "model", "--served-model-name", MODEL),
            *("--load-format", "dummy", "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(CONTEXT_TOKENS), *kind),
        ]

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
