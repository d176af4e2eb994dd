"""Installs vLLM's build for CPUs in an environment of its own, once, and runs these tests against it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
PLACE: Final = ROOT / ".headrace" / "vllm"
LOCK: Final = HERE / "vllm.lock"
NEEDED_BYTES: Final = 6 * 1024**3
TORCH: Final = "torch==2.13.0+cpu"
# vLLM asks the environment for its own version by this name, and takes the part behind the + for its platform.
ITSELF: Final = "vllm-0.32.0+cpu.dist-info"
TESTS: Final = ("test_vllm_provider.py", "test_vllm_fleet.py")
UNABLE: Final = 2


class Unable(Exception):
    """Why it can't run here, in words."""


def main(words: list[str]) -> int:
    """pytest's exit status, or 2 where it can't run here; `words` are more options for pytest."""
    try:
        python = _installed()
    except Unable as reason:
        sys.stderr.write(f"Not run: {reason}\n")
        return UNABLE
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", *words, *(str(HERE / name) for name in TESTS)]
    environ = {**os.environ, "HEADRACE_TEST_VLLM": str(python)}
    return subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, env=environ, check=False).returncode


def _installed() -> Path:
    """The Python that has vLLM; installs it where the lock asks for another than is there. Raises Unable."""
    python, mark = PLACE / "bin" / "python", PLACE / "installed"
    wanted = sha256(LOCK.read_bytes() + TORCH.encode()).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return python
    _check_machine()
    _say(f"Installing vLLM in {PLACE}: 2.2 GB, a minute or more by the network's speed.")
    began_s = time.monotonic()
    shutil.rmtree(PLACE, ignore_errors=True)
    _run("no environment could be made", sys.executable, "-m", "venv", str(PLACE))
    _run(
        f"pip found no {TORCH}. Tell it where PyTorch's builds for CPUs lie (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL)",
        *(str(python), "-m", "pip", "install", "--quiet", "--no-deps", TORCH),
    )
    _run(
        "the packages of tests/real/vllm.lock could not be installed",
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python)),
        *("--no-deps", "--require-hashes", "-r", str(LOCK)),
    )
    _name_itself()
    mark.write_text(wanted)
    _say(f"Installed in {time.monotonic() - began_s:.0f} s. It starts twice, a minute or more each time.")
    return python


def _check_machine() -> None:
    if (platform.system(), platform.machine(), sys.version_info[:2]) != ("Linux", "x86_64", (3, 11)):
        raise Unable("its packages are locked for CPython 3.11 on x86-64 Linux")
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(PLACE.parent).free < NEEDED_BYTES:
        raise Unable(f"it needs {NEEDED_BYTES // 1024**3} GiB of free disk")


def _name_itself() -> None:
    place = next(PLACE.glob("lib/python*/site-packages")) / ITSELF
    place.mkdir()
    name, version = ITSELF.removesuffix(".dist-info").split("-")
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _run(trouble: str, *words: str) -> None:
    # Heavy work beside which a machine should stay usable.
    if subprocess.run(["nice", "-n", "15", *words], check=False).returncode:
        raise Unable(trouble)


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
