"""The little language model's process: llama.cpp's own HTTP server around one model file, until a signal ends it."""

# xllamacpp is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import argparse
import signal
import sys

import xllamacpp

_SLOTS = 4
_CONTEXT_TOKENS_A_SLOT = 2048


def parameters(file: str, port: int) -> xllamacpp.CommonParams:
    """llama.cpp's settings for this file: loopback only, four answers at once, each with the model's whole context."""
    chosen = xllamacpp.CommonParams()
    chosen.model.path = file
    chosen.model_alias = {"SmolLM2-135M-Instruct"}
    chosen.hostnames = ["127.0.0.1"]
    chosen.port = port
    chosen.n_parallel = _SLOTS
    chosen.n_ctx = _SLOTS * _CONTEXT_TOKENS_A_SLOT
    chosen.endpoint_metrics = True
    chosen.ui = False
    return chosen


def main(words: list[str]) -> int:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.model", description=__doc__)
    parser.add_argument("--file", required=True)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args(words)
    ending = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the engine makes its threads, so that the signal comes to the wait below and to no other thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    server = xllamacpp.Server(parameters(asked.file, asked.port))
    signal.sigwait(ending)
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
