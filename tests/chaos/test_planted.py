"""Faults planted in a copy of the code are found out, each in a scene of its own; sound code passes every scene."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.chaos.planted import FAULTS, Planted
from tests.chaos.scenarios import SCENES, seen_in
from tests.support.fleet import ROOT
from tests.support.tree import copied

pytestmark = pytest.mark.timeout(90)

# One for each kind of promise: one writer, whole streams, no lost job.
ALWAYS = frozenset({"append asks nobody's leave", "tokens are added wherever the stream ends"})


def _marked(fault: Planted) -> object:
    marks = () if fault.name in ALWAYS else (pytest.mark.slow,)
    return pytest.param(fault, id=fault.name.replace(" ", "-"), marks=marks)


async def said_by(tests: str, tree: Path) -> list[str]:
    """The last lines of a file of tests, run in the copy."""
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    words = (sys.executable, "-P", "-m", "pytest", "-q", "-x", "--tb=no", tests)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(
        *words, cwd=tree, env={**environ, "PYTHONPATH": str(tree)}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode().splitlines()[-3:]


@pytest.mark.parametrize("scene", [pytest.param(name, marks=pytest.mark.slow) for name in SCENES])
async def test_nothing_is_found_in_a_scene_played_by_sound_code(scene: str, tmp_path: Path) -> None:
    assert await seen_in(scene, tmp_path, copied(tmp_path)) == []


@pytest.mark.parametrize("fault", [_marked(fault) for fault in FAULTS])
async def test_a_planted_fault_is_found_out(fault: Planted, tmp_path: Path) -> None:
    tree = copied(tmp_path, *fault.changes)
    found = await (seen_in(fault.scene, tmp_path, tree) if fault.scene in SCENES else said_by(fault.scene, tree))
    sys.stdout.write("\n".join(found[:5]) + "\n")
    assert any(fault.says in problem for problem in found), found[:10]
