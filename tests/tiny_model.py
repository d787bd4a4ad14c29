"""Writes a tiny random-weight GGUF that every llama.cpp engine loads and generates from, and broken variants of it.

    python tests/tiny_model.py PATH [--broken KIND] [--seed N] [--name NAME]

Half a megabyte, standard library only, the same bytes for the same arguments. The model speaks printable ASCII without
end: its output rows are made so that no control token, no raw byte and no end of text is ever sampled, so an answer is
as long as was asked for. What it says is noise.
"""

import argparse
import random
import struct
import sys
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD = 2, 64, 4, 2, 128
CONTEXT = 32768
ALIGNMENT = 32

UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT32 = 4, 6, 7, 8, 9, 10, 5
TENSOR_F32, TENSOR_F16 = 0, 1
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

BROKEN = (
    "empty",
    "wrong-magic",
    "truncated-header",
    "truncated-tensors",
    "unknown-architecture",
    "missing-tensor",
)


@dataclass(frozen=True)
class Tensor:
    """``shape`` as GGUF has it: the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes


def write(
    path: str | Path,
    *,
    seed: int = 1,
    name: str = "tiny",
    context_length: int = CONTEXT,
    architecture: str = "llama",
    without: Collection[str] = (),
) -> Path:
    """Write the model to ``path``. ``without`` leaves tensors out by name."""
    target = Path(path)
    target.write_bytes(_model_bytes(seed, name, context_length, architecture, without))
    return target


def write_broken(path: str | Path, kind: str) -> Path:
    """Write a variant that no engine can load; ``kind`` is one of :data:`BROKEN`."""
    target = Path(path)
    if kind == "unknown-architecture":
        return write(target, architecture="perceptron9000")
    if kind == "missing-tensor":
        return write(target, without=("blk.1.ffn_down.weight",))
    whole = _model_bytes(1, "tiny", CONTEXT, "llama", ())
    broken = {
        "empty": b"",
        "wrong-magic": b"GGML" + whole[4:],
        "truncated-header": whole[:300],
        "truncated-tensors": whole[: len(whole) * 2 // 3],
    }
    target.write_bytes(broken[kind])
    return target


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary with a fallback to bytes."""
    tokens = ["<unk>", "<s>", "</s>"]
    types = [UNKNOWN, CONTROL, CONTROL]
    scores = [0.0, 0.0, 0.0]
    for byte in range(256):
        tokens.append(f"<0x{byte:02X}>")
        types.append(BYTE)
        scores.append(0.0)
    # What is merged first has the higher score; single characters come last, as a trained vocabulary has it.
    pieces = "▁the ▁and ▁of ▁to ▁a ▁is in er th on an re he ing ed ▁t ▁in ▁on ▁it ▁we ▁go ▁so ▁up ▁no ▁my ▁be ▁as ▁at"
    characters = ["▁", *(chr(code) for code in range(33, 127))]
    for rank, piece in enumerate(pieces.split() + characters):
        tokens.append(piece)
        types.append(NORMAL)
        scores.append(-float(rank))
    return tokens, scores, types


def _model_bytes(seed: int, name: str, context_length: int, architecture: str, without: Collection[str]) -> bytes:
    tokens, scores, types = vocabulary()
    tensors = [tensor for tensor in _tensors(random.Random(seed), types) if tensor.name not in without]
    metadata = list(_metadata(name, context_length, architecture, tokens, scores, types))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata)
    body = bytearray()
    infos = bytearray()
    for tensor in tensors:
        infos += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        infos += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", tensor.kind, len(body))
        body += tensor.data + bytes(-len(tensor.data) % ALIGNMENT)
    header += infos
    return bytes(header + bytes(-len(header) % ALIGNMENT) + body)


def _metadata(
    name: str,
    context_length: int,
    architecture: str,
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
) -> Iterator[bytes]:
    head = WIDTH // HEADS
    texts = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.size_label": "123K",
        "general.license": "mit",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    numbers = {
        "general.file_type": 1,
        "general.quantization_version": 2,
        "general.alignment": ALIGNMENT,
        f"{architecture}.context_length": context_length,
        f"{architecture}.embedding_length": WIDTH,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.feed_forward_length": FEED_FORWARD,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.rope.dimension_count": head,
        f"{architecture}.vocab_size": len(tokens),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    for key, text in texts.items():
        yield _string(key) + struct.pack("<I", STRING) + _string(text)
    for key, number in numbers.items():
        yield _string(key) + struct.pack("<II", UINT32, number)
    for key, value in {
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
    }.items():
        yield _string(key) + struct.pack("<If", FLOAT32, value)
    for key, flag in {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False}.items():
        yield _string(key) + struct.pack("<I?", BOOL, flag)
    yield _array("tokenizer.ggml.tokens", STRING, len(tokens), b"".join(map(_string, tokens)))
    yield _array("tokenizer.ggml.scores", FLOAT32, len(scores), struct.pack(f"<{len(scores)}f", *scores))
    yield _array("tokenizer.ggml.token_type", INT32, len(types), struct.pack(f"<{len(types)}i", *types))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _array(key: str, kind: int, length: int, data: bytes) -> bytes:
    return _string(key) + struct.pack("<IIQ", ARRAY, kind, length) + data


def _tensors(rng: random.Random, types: Sequence[int]) -> Iterator[Tensor]:
    """The weights. Dimension 0 of the hidden state is a constant that no layer touches: the output rows use it to
    silence the tokens that must never be sampled."""
    kv_width = WIDTH // HEADS * KV_HEADS
    embeddings = [[4.0, *_row(rng, WIDTH - 1, 0.5)] for _ in types]
    yield _f32("token_embd.weight", embeddings)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield _ones(f"{block}.attn_norm.weight", WIDTH)
        yield _f32(f"{block}.attn_q.weight", _matrix(rng, WIDTH, WIDTH))
        yield _f32(f"{block}.attn_k.weight", _matrix(rng, kv_width, WIDTH))
        yield _f32(f"{block}.attn_v.weight", _matrix(rng, kv_width, WIDTH))
        yield _f32(f"{block}.attn_output.weight", _leaving_the_first_alone(_matrix(rng, WIDTH, WIDTH)))
        yield _ones(f"{block}.ffn_norm.weight", WIDTH)
        yield _f16(f"{block}.ffn_gate.weight", _matrix(rng, FEED_FORWARD, WIDTH))
        yield _f16(f"{block}.ffn_up.weight", _matrix(rng, FEED_FORWARD, WIDTH))
        yield _f16(f"{block}.ffn_down.weight", _leaving_the_first_alone(_matrix(rng, WIDTH, FEED_FORWARD)))
    yield _ones("output_norm.weight", WIDTH)
    spoken = [[0.0, *_row(rng, WIDTH - 1, 0.5)] if kind == NORMAL else [-8.0] + [0.0] * (WIDTH - 1) for kind in types]
    yield _f32("output.weight", spoken)


def _row(rng: random.Random, length: int, scale: float) -> list[float]:
    return [(rng.random() * 2 - 1) * scale for _ in range(length)]


def _matrix(rng: random.Random, rows: int, columns: int) -> list[list[float]]:
    return [_row(rng, columns, 0.25) for _ in range(rows)]


def _leaving_the_first_alone(rows: list[list[float]]) -> list[list[float]]:
    return [[0.0] * len(rows[0]), *rows[1:]]


def _f32(name: str, rows: list[list[float]]) -> Tensor:
    flat = array("f", (value for row in rows for value in row))
    if sys.byteorder == "big":
        flat.byteswap()
    return Tensor(name, (len(rows[0]), len(rows)), TENSOR_F32, flat.tobytes())


def _f16(name: str, rows: list[list[float]]) -> Tensor:
    flat = [value for row in rows for value in row]
    return Tensor(name, (len(rows[0]), len(rows)), TENSOR_F16, struct.pack(f"<{len(flat)}e", *flat))


def _ones(name: str, length: int) -> Tensor:
    return Tensor(name, (length,), TENSOR_F32, struct.pack(f"<{length}f", *([1.0] * length)))


def main() -> None:
    parser = argparse.ArgumentParser(description="write a tiny GGUF model for tests")
    parser.add_argument("path", type=Path)
    parser.add_argument("--broken", choices=BROKEN, help="write a variant that no engine can load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="tiny")
    options = parser.parse_args()
    if options.broken:
        write_broken(options.path, options.broken)
    else:
        write(options.path, seed=options.seed, name=options.name)
    print(options.path)


if __name__ == "__main__":
    main()
