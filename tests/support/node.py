"""Clients for Node: their journeys are scripts in `tests/journeys/clients/node`, run against a fleet."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

import pytest

from tests.support.fleet import KEY, ROOT, Fleet

HERE: Final = ROOT / "tests" / "journeys" / "clients" / "node"
NODE: Final = shutil.which("node")
LIMIT_S: Final = 60

NEEDS_NODE: Final = [
    pytest.mark.timeout(LIMIT_S + 30),
    pytest.mark.lengthy,
    pytest.mark.skipif(NODE is None, reason="node is not installed (Debian: apt-get install nodejs)"),
    pytest.mark.skipif(not (HERE / "node_modules").is_dir(), reason="its packages are not installed: ./just clients"),
]


def passes(script: str, fleet: Fleet, *, limit_s: float = LIMIT_S, **more: str) -> None:
    """Runs a script against the fleet. Raises AssertionError with what it said, where a journey of it failed."""
    assert NODE is not None
    given = {"HEADRACE_URL": fleet.url(), "HEADRACE_API_KEY": KEY, **more}
    # Without these variables it asks the fleet itself.
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    words = [NODE, "--test-reporter=spec", f"{script}.mjs"]
    done = subprocess.run(
        words, cwd=HERE, env={**environ, **given}, capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
