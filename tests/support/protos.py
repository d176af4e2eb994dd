"""Makes the code of the gRPC contract: `python -m tests.support.protos` writes what the tree must hold."""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parents[2] / "gateway" / "rpc"
CONTRACT: Final = "headrace/v1/inference.proto"
# protoc takes the contract's own path for a module's; ours lies deeper.
_IMPORT: Final = "from headrace.v1 import"


def generated() -> dict[Path, str]:
    """Every generated file's place in the tree, and what it must hold."""
    with tempfile.TemporaryDirectory() as folder:
        known = resources.files("grpc_tools") / "_proto"
        outs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        status: int = protoc.main(["protoc", f"-I{ROOT}", f"-I{known}", *outs, str(ROOT / CONTRACT)])
        if status:
            raise RuntimeError(f"protoc failed with {status}")
        written = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {ROOT / path.relative_to(folder): _placed(path.read_text(encoding="utf-8")) for path in written}


def _placed(code: str) -> str:
    return code.replace(_IMPORT, f"from gateway.rpc.{_IMPORT.removeprefix('from ')}")


def main() -> None:
    """Writes the generated files."""
    for path, code in generated().items():
        path.write_text(code, encoding="utf-8")


if __name__ == "__main__":
    main()
