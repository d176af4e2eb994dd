"""A model for engines that make its weights up: a config and a tokenizer of bytes and words, and no weights at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson

CONTEXT_TOKENS: Final = 32_768
"""So many that no answer up to it ends by itself while a busy machine is slow to look."""
_MARKS: Final = ("<unk>", "<s>", "</s>")
_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
)
_WORDS: Final = [f"{first}{second}" for first in ("ba", "de", "ki", "lo", "mu", "ra") for second in "bcdfglmnprst"]


def write_model(place: Path) -> None:
    """Writes the folder of a little Llama; the same bytes each time."""
    place.mkdir()
    vocabulary, merges = _vocabulary()
    _write(place / "tokenizer.json", _tokenizer(vocabulary, merges))
    _write(
        place / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            "model_max_length": CONTEXT_TOKENS,
            "chat_template": _TEMPLATE,
        },
    )
    _write(place / "config.json", _config(len(vocabulary)))


def token_id(word: str) -> int:
    """The number of a token: of one of the marks, a byte's character or a word with its space, as ` bab`."""
    return _vocabulary()[0][word.replace(" ", "Ġ")]


def _config(tokens: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        **{"model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32"},
        **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0},
        **{"vocab_size": tokens, "max_position_embeddings": CONTEXT_TOKENS, "bos_token_id": 1, "eos_token_id": 2},
    }


def _vocabulary() -> tuple[dict[str, int], list[list[str]]]:
    """Every token's number, and the pairs that become one: each word grows from its space, letter by letter."""
    tokens = [*_MARKS, *_characters()]
    merges: list[list[str]] = []
    for word in _WORDS:
        grown = "Ġ"
        for letter in word:
            if [grown, letter] not in merges:
                merges.append([grown, letter])
            grown += letter
            tokens.append(grown)
    once = list(dict.fromkeys(tokens))
    return {token: number for number, token in enumerate(once)}, merges


def _characters() -> list[str]:
    """What stands for each byte in a byte-level vocabulary: itself where it can be seen, else a later character."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    later = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(later)) for byte in range(256)]


def _tokenizer(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[mark], "content": mark, **marks} for mark in _MARKS],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": merges},
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_bytes(orjson.dumps(document))
