"""The source tree as the house's rules look at it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FIRST_DEFINITION = re.compile(r"^(?=@|def |async def |class )", re.MULTILINE)
ROOMS = ("common", "deploy", "gateway", "scheduler", "workers")


def modules(*folders: str) -> list[Path]:
    """Every Python file under these folders of the checkout that somebody wrote."""
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [path for path in found if not path.stem.endswith(("_pb2", "_pb2_grpc"))]


def relative(path: Path) -> str:
    """The path as people say it."""
    return path.relative_to(ROOT).as_posix()


def opening(path: Path) -> str:
    """The docstring that the file opens with; the rest of it is not looked at, since there are many."""
    text = path.read_text(encoding="utf-8")
    return text[3 : text.find('"""', 3)] if text.startswith('"""') else ""


@cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """The dotted names that the file imports: modules, and names taken from them; nothing is imported further down."""
    head = _FIRST_DEFINITION.split(path.read_text(encoding="utf-8"), maxsplit=1)[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(head)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found
