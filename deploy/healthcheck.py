"""A container's health check: exit code 0 when its process, be it gateway, scheduler or worker, answers on its port.

It asks for life, not readiness: a Redis that is away must not make an orchestrator restart everything.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

LIMIT_S = 2.0


def addresses() -> list[str]:
    """Where the process may be: the gateway's HTTP port, then the ports on which each kind shows its metrics."""
    http_port = os.environ.get("HEADRACE_HTTP_PORT") or "8080"
    metrics_ports = (
        [os.environ.get("HEADRACE_METRICS_PORT")] if os.environ.get("HEADRACE_METRICS_PORT") else ["9092", "9093"]
    )
    return [f"http://127.0.0.1:{http_port}/livez", *(f"http://127.0.0.1:{port}/metrics" for port in metrics_ports)]


def answers(url: str) -> bool:
    """Whether that address answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:  # noqa: S310 - the scheme is ours
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if any(answers(url) for url in addresses()) else 1)
