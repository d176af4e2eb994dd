"""The gRPC contract passes its linter, and the code made of it is what the tree holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.protos import ROOT, generated


def test_the_generated_code_is_what_the_contract_makes() -> None:
    made = generated()
    held = {path for path in (ROOT / "headrace").rglob("*_pb2*") if path.suffix in (".py", ".pyi")}
    stale = [path.name for path, code in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != code]
    assert stale == [], "run: python -m tests.support.protos"
    assert held == set(made)


def test_the_contract_passes_bufs_lint() -> None:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed (PyPI: buf-bin)")
    run = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
