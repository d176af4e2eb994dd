"""`./just` on machines that lack something: it says in one line what to do. (A whole installation is CI's business.)"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.local.child import ROOT

TOOLS = ("cat", "cksum", "dirname", "cp", "chmod", "rm", "mkdir")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a path with a space, without .venv."""
    place = tmp_path / "a checkout"
    (place / "deploy").mkdir(parents=True)
    for name in ("just", "justfile", "requirements.lock", "deploy/headrace"):
        shutil.copy(ROOT / name, place / name)
    return place


def bin_with(tmp_path: Path, **programs: str) -> Path:
    """A PATH of only what POSIX has, and these scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    for name, script in programs.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return folder


def run(checkout: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(checkout / "just"), *words],
        env={"PATH": str(path), "HOME": ""},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_python_is_told_which_one_is_needed(checkout: Path, tmp_path: Path) -> None:
    result = run(checkout, bin_with(tmp_path), "demo")
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_a_python_that_is_too_old_is_not_taken(checkout: Path, tmp_path: Path) -> None:
    result = run(checkout, bin_with(tmp_path, python3="exit 1"), "demo")
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_a_python_without_the_venv_module_is_told_the_package_that_has_it(checkout: Path, tmp_path: Path) -> None:
    bare = 'case "$2" in *venv*) exit 1 ;; *print*) echo 3.12 ;; esac'
    result = run(checkout, bin_with(tmp_path, python3=bare), "demo")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("apt-get install python3.12-venv")


def installed(checkout: Path, program: str, script: str) -> None:
    """Makes the checkout look installed, with this program in it."""
    venv = checkout / ".venv/bin"
    venv.mkdir(parents=True, exist_ok=True)
    (venv / program).write_text(f"#!/bin/sh\n{script}\n")
    (venv / program).chmod(0o755)
    stamp = "cat requirements.lock deploy/headrace | cksum"
    (checkout / ".venv/.stamp").write_text(subprocess.check_output(stamp, shell=True, cwd=checkout, text=True))
    (checkout / ".venv/.place").write_text(f"{checkout}\n")


def test_an_installed_checkout_hands_its_words_to_its_own_just(checkout: Path, tmp_path: Path) -> None:
    installed(checkout, "just", 'printf "%s\\n" "$@"')
    result = run(checkout, bin_with(tmp_path), "test", "-k", "a queue", "*")
    assert result.stdout.splitlines() == [
        *("--justfile", f"{checkout}/justfile", "--working-directory", str(checkout)),
        *("test", "-k", "a queue", "*"),
    ]


@pytest.mark.parametrize("command", ["up", "demo"])
def test_what_runs_until_a_signal_is_run_under_the_wrappers_own_id(
    checkout: Path, tmp_path: Path, command: str
) -> None:
    installed(checkout, "headrace", 'printf "%s\\n" "$$" "$PWD" "$@"')
    process = subprocess.Popen(
        ["/bin/sh", str(checkout / "just"), command, "what is a queue?"],
        env={"PATH": str(bin_with(tmp_path))},
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
    )
    told, _ = process.communicate()
    assert told.splitlines() == [str(process.pid), str(checkout), command, "what is a queue?"]


def test_a_changed_lock_is_installed_before_anything_runs(checkout: Path, tmp_path: Path) -> None:
    venv = checkout / ".venv/bin"
    venv.mkdir(parents=True)
    python = venv / "python"
    python.write_text('#!/bin/sh\necho "python $*" >>"$(dirname "$0")/../calls"\n')
    python.chmod(0o755)
    (venv / "just").write_text("#!/bin/sh\n")
    (venv / "just").chmod(0o755)
    (checkout / ".venv/.stamp").write_text("another lock\n")
    (checkout / ".venv/.place").write_text(f"{checkout}\n")
    path = bin_with(tmp_path)
    assert run(checkout, path).returncode == 0
    install = [call for call in (checkout / ".venv/calls").read_text().splitlines() if "pip install" in call]
    assert len(install) == 1
    assert "--require-hashes --no-deps" in install[0]
    assert (checkout / ".venv/bin/headrace").exists()
    assert run(checkout, path).returncode == 0  # and only once
    assert (checkout / ".venv/calls").read_text().count("pip install") == 1


def test_a_link_to_another_checkouts_packages_is_replaced_and_they_stay(checkout: Path, tmp_path: Path) -> None:
    others = tmp_path / "another checkout"
    (others / "bin").mkdir(parents=True)
    (others / "bin" / "python").write_text("theirs")
    (checkout / ".venv").symlink_to(others)
    python = 'case "$2" in venv) rm -rf "$4"/*; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;; esac'
    run(checkout, bin_with(tmp_path, python3=python))
    assert (others / "bin" / "python").read_text() == "theirs"
    assert (checkout / ".venv" / "bin" / "headrace").exists() and not (checkout / ".venv").is_symlink()
