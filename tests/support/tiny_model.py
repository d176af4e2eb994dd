"""A language model of half a megabyte with random weights, and the real llama.cpp serving it in a process of its own.

Its answers are nonsense, but the engine, its protocol and its mistakes are real.
Run as a program (`python -m tests.support.tiny_model MODEL [embeddings]`) it serves until its standard input ends.
"""

# xllamacpp is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType

import numpy
import xllamacpp
from gguf import GGUFWriter, TokenType

WIDTH = 64
BLOCKS = 2
HEADS = 4
HIDDEN = 128
CONTEXT_TOKENS = 512
WORDS = [f"\u2581{first}{second}" for first in ("ba", "de", "ki", "lo", "mu", "ra") for second in "bcdfglmnprst"]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def write_model(path: Path) -> None:
    """Writes the model; the same bytes each time."""
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    special = _add_tokens(writer)
    _add_weights(writer, special=special, count=special + len(WORDS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: GGUFWriter) -> int:
    """Adds the vocabulary: every byte, so that any prompt can be read, then words. How many come before the words."""
    marks = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{number:02X}>" for number in range(256)]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(marks + byte_tokens + WORDS)
    writer.add_token_scores([0.0] * (len(marks) + 256) + [-1.0] * len(WORDS))
    writer.add_token_types(kinds + [TokenType.NORMAL] * len(WORDS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    return len(marks) + 256


def _add_weights(writer: GGUFWriter, *, special: int, count: int) -> None:
    random = numpy.random.default_rng(7)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.5, shape).astype(numpy.float32))

    add("token_embd.weight", count, WIDTH)
    for block in range(BLOCKS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", numpy.ones(WIDTH, numpy.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{block}.{name}.weight", WIDTH, WIDTH)
        for name, shape in (("gate", (HIDDEN, WIDTH)), ("up", (HIDDEN, WIDTH)), ("down", (WIDTH, HIDDEN))):
            add(f"blk.{block}.ffn_{name}.weight", *shape)
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, numpy.float32))
    # Bytes and the end's mark get nothing, so that answers are words and go on until their limit.
    output = random.normal(0, 1, (count, WIDTH)).astype(numpy.float32)
    output[:special] = 0
    writer.add_tensor("output.weight", output)


class LlamaServer:
    """llama.cpp's server in a process; `with` starts it, waits until it answers, and ends it.

    `embeddings`: it makes embeddings, and nothing else.
    """

    def __init__(self, model: Path, *, embeddings: bool = False) -> None:
        words = [sys.executable, "-m", "tests.support.tiny_model", str(model)]
        self._words = [*words, "embeddings"] if embeddings else words
        self._log = model.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> LlamaServer:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=Path(__file__).parents[2]
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:  # ends with the process, so a server that fails to start is seen
            if line.startswith(b"ready "):
                self.url = line.split()[1].decode()
                return self
        raise RuntimeError(f"llama.cpp did not start:\n{self._log.read_text()[-2000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()  # it keeps nothing, and its own way down takes seconds
        self._process.communicate()


def serve(model: str, *, embeddings: bool) -> None:
    """Serves the model on a free loopback port until standard input ends."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 2 * CONTEXT_TOKENS
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.warmup = False
    if embeddings:
        params.embedding = True
        # Without it, texts of different lengths in one batch spoil each other's vectors.
        params.kv_unified = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    sys.stdout.write(f"ready {server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], embeddings="embeddings" in sys.argv[2:])
