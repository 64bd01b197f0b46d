"""A language model of random weights, small enough to be written in a moment, as a GGUF file that llama.cpp loads.

It speaks words of its own vocabulary in an order that means nothing. Bytes and control tokens have no weight, so that
it never ends by itself: `max_tokens` does.
"""

import random
import struct
from itertools import product
from pathlib import Path
from typing import Any

WIDTH = 32
HIDDEN = 64
HEADS = 2
CONTEXT = 65536
WORDS = [
    *(f"▁{begin}{end}" for begin, end in product(("mo", "ka", "ri", "tu", "se", "no"), ("la", "bi", "ren", "ko", "s"))),
    *("▁grüße", "▁naïve", "▁世界", "▁мир", "▁👋🏽", "▁\u2028", '▁"quoted"', "▁back\\slash", "\n"),
]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"

_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9
_ALIGNMENT = 32
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def write_tiny_model(path: Path, seed: int = 1) -> Path:
    """Writes the model; the same seed gives the same weights."""
    tokens = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    tokens += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    tokens += [(word, _NORMAL) for word in WORDS]
    tensors = _tensors(random.Random(seed), [kind for _, kind in tokens])
    keys = _keys(tokens)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(_string(key) + struct.pack("<I", kind) + _value(kind, value) for key, kind, value in keys)
    data = bytearray()
    for name, shape, values in tensors:
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += struct.pack(f"<{len(values)}f", *values)
        data += bytes(-len(data) % _ALIGNMENT)
    path.write_bytes(head + bytes(-len(head) % _ALIGNMENT) + data)
    return path


def _keys(tokens: list[tuple[str, int]]) -> list[tuple[str, int, Any]]:
    return [
        ("general.architecture", _STRING, "llama"),
        ("general.name", _STRING, "tiny"),
        ("llama.block_count", _UINT32, 1),
        ("llama.context_length", _UINT32, CONTEXT),
        ("llama.embedding_length", _UINT32, WIDTH),
        ("llama.feed_forward_length", _UINT32, HIDDEN),
        ("llama.attention.head_count", _UINT32, HEADS),
        ("llama.attention.head_count_kv", _UINT32, HEADS),
        ("llama.attention.layer_norm_rms_epsilon", _FLOAT32, 1e-5),
        ("llama.rope.dimension_count", _UINT32, WIDTH // HEADS),
        ("llama.vocab_size", _UINT32, len(tokens)),
        ("tokenizer.ggml.model", _STRING, "llama"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, [text for text, _ in tokens])),
        ("tokenizer.ggml.scores", _ARRAY, (_FLOAT32, [-float(number) for number in range(len(tokens))])),
        ("tokenizer.ggml.token_type", _ARRAY, (_INT32, [kind for _, kind in tokens])),
        ("tokenizer.ggml.unknown_token_id", _UINT32, 0),
        ("tokenizer.ggml.bos_token_id", _UINT32, 1),
        ("tokenizer.ggml.eos_token_id", _UINT32, 2),
        ("tokenizer.chat_template", _STRING, TEMPLATE),
    ]


def _tensors(source: random.Random, kinds: list[int]) -> list[tuple[str, tuple[int, ...], list[float]]]:
    def noise(size: int) -> list[float]:
        return [source.gauss(0.0, 1.0) for _ in range(size)]

    def matrix(name: str, columns: int, rows: int) -> tuple[str, tuple[int, ...], list[float]]:
        return name, (columns, rows), noise(columns * rows)

    def ones(name: str) -> tuple[str, tuple[int, ...], list[float]]:
        return name, (WIDTH,), [1.0] * WIDTH

    # A row of zeros is a token that is never the most likely one.
    output = [value for kind in kinds for value in (noise(WIDTH) if kind == _NORMAL else [0.0] * WIDTH)]
    return [
        matrix("token_embd.weight", WIDTH, len(kinds)),
        ones("blk.0.attn_norm.weight"),
        *(matrix(f"blk.0.attn_{part}.weight", WIDTH, WIDTH) for part in ("q", "k", "v", "output")),
        ones("blk.0.ffn_norm.weight"),
        matrix("blk.0.ffn_gate.weight", WIDTH, HIDDEN),
        matrix("blk.0.ffn_up.weight", WIDTH, HIDDEN),
        matrix("blk.0.ffn_down.weight", HIDDEN, WIDTH),
        ones("output_norm.weight"),
        ("output.weight", (WIDTH, len(kinds)), output),
    ]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == _ARRAY:
        of, values = value
        return struct.pack("<IQ", of, len(values)) + b"".join(_value(of, one) for one in values)
    if kind == _STRING:
        return _string(value)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f"}[kind], value)
