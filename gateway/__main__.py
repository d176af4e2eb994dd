"""`python -m gateway`: one gateway."""

from __future__ import annotations

import sys

from common.config import ConfigError, load
from gateway.main import run

MISCONFIGURED = 2

if __name__ == "__main__":
    try:
        settings = load()
    except ConfigError as error:
        sys.stderr.write(f"headrace: {error}\n")
        sys.exit(MISCONFIGURED)
    sys.exit(run(settings))
