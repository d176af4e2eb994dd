"""`python -m gateway`: one gateway."""

from __future__ import annotations

import sys

from common.config import ConfigError, load
from gateway.main import run

if __name__ == "__main__":
    try:
        settings = load()
    except ConfigError as error:
        sys.exit(f"headrace: {error}")
    sys.exit(run(settings))
