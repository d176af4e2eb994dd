"""Every module says its one job, stays in its room, and keeps the words of others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.house.source import ROOMS, ROOT, imports, modules, opening, relative, tree

SAYS_TOO_LITTLE_BELOW = 3  # words


def test_every_module_opens_with_its_job_in_a_few_lines() -> None:
    wrong: list[str] = []
    for path in modules(*ROOMS, "tests"):
        text = opening(path).split("\n\n")[0]
        if len(text.split()) < SAYS_TOO_LITTLE_BELOW or text.count("\n") > 2:
            wrong.append(relative(path))
    assert wrong == []


def test_a_common_module_speaks_redis_or_serves_two_rooms() -> None:
    wrong: list[str] = []
    for parts in _common_parts():
        found = set[str]().union(*map(imports, parts))
        if any(one.split(".")[0] == "redis" for one in found) or "common.store.Store" in found:
            continue
        names = {_dotted(path) for path in parts}
        rooms = {room for room in ROOMS for user in modules(room) if user not in parts and names & imports(user)}
        if len(rooms) < 2:
            wrong.append(f"{relative(parts[0])}: imported by {sorted(rooms)}")
    assert wrong == []


def _common_parts() -> list[list[Path]]:
    """The modules of common, and its packages, each as its files; migrations are run, not imported."""
    alone = [[path] for path in modules("common") if path.parent == ROOT / "common" and path.name != "__init__.py"]
    packages = sorted((ROOT / "common").glob("*/__init__.py"))
    return alone + [modules(relative(package.parent)) for package in packages]


def _dotted(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_no_module_is_a_drawer_for_anything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "base", "common", "shared", "core"}
    allowed = {"workers/providers/base.py"}  # the protocol that every provider honours
    named = {relative(path) for path in modules(*ROOMS) if path.stem in drawers}
    assert named == allowed


def test_only_the_keys_module_writes_the_names_of_keys() -> None:
    literal = re.compile(r"hr:\{")
    wrong = [
        relative(path)
        for path in modules(*ROOMS)
        if relative(path) != "common/keys.py"
        and literal.search(path.read_text(encoding="utf-8"))
        and any(literal.search(text) for text in _strings(tree(path)))
    ]
    assert wrong == []


def test_scripts_derive_keys_from_the_prefix_they_are_given() -> None:
    wrong: list[str] = []
    for path in sorted((ROOT / "common/lua").glob("*.lua")):
        code = "\n".join(line.split("--")[0] for line in path.read_text(encoding="utf-8").splitlines())
        if "hr:" in code:
            wrong.append(relative(path))
    assert wrong == []


def test_every_script_says_its_purpose_its_keys_and_its_arguments() -> None:
    wrong: list[str] = []
    for path in sorted((ROOT / "common/lua").glob("*.lua")):
        header = [line for line in path.read_text(encoding="utf-8").splitlines()[:30] if line.startswith("--")]
        text = "\n".join(header)
        if len(header) < 3 or "KEYS" not in text or "ARGV" not in text or "Returns" not in text:
            wrong.append(relative(path))
    assert wrong == []


def test_a_sleep_in_a_test_is_only_the_pause_between_two_looks() -> None:
    longest_pause_s = 0.1
    wrong = [
        f"{relative(path)}:{call.lineno}"
        for path in modules("tests")
        if path.name.startswith("test_") and ".sleep(" in path.read_text(encoding="utf-8")
        for call in ast.walk(tree(path))
        if isinstance(call, ast.Call) and _is_sleep(call) and not _is_short(call, longest_pause_s)
    ]
    assert wrong == []


def _strings(module: ast.Module) -> list[str]:
    """Every string in the code, f-strings' fixed parts too, but no docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def _is_sleep(call: ast.Call) -> bool:
    function = call.func
    owner = function.value if isinstance(function, ast.Attribute) else None
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "sleep"
        and isinstance(owner, ast.Name)
        and owner.id in ("time", "asyncio")
    )


def _is_short(call: ast.Call, longest_s: float) -> bool:
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Constant) and isinstance(first.value, int | float) and first.value <= longest_s
