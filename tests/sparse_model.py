"""Model files that claim gigabytes and take kilobytes, as llama-server loads them."""

from pathlib import Path
from typing import Any

from catalog import gguf_writer

LAYERS, WIDTH, INNER, WORDS = 32, 4096, 14336, 128256


def write_llama(path: Path, layers: int = LAYERS) -> str:
    """A llama of 8 billion parameters: 7.9 GiB with all its layers."""
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.context_length": 131072,
        "llama.embedding_length": WIDTH,
        "llama.block_count": layers,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.rope.dimension_count": 128,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
    }
    tensors: list[gguf_writer.Info] = [
        ("token_embd.weight", (WIDTH, WORDS), "Q8_0"),
        ("output_norm.weight", (WIDTH,), "F32"),
        ("output.weight", (WIDTH, WORDS), "Q8_0"),
    ]
    for layer in range(layers):
        tensors += [
            (f"blk.{layer}.attn_norm.weight", (WIDTH,), "F32"),
            (f"blk.{layer}.attn_q.weight", (WIDTH, WIDTH), "Q8_0"),
            (f"blk.{layer}.attn_k.weight", (WIDTH, 1024), "Q8_0"),
            (f"blk.{layer}.attn_v.weight", (WIDTH, 1024), "Q8_0"),
            (f"blk.{layer}.attn_output.weight", (WIDTH, WIDTH), "Q8_0"),
            (f"blk.{layer}.ffn_norm.weight", (WIDTH,), "F32"),
            (f"blk.{layer}.ffn_gate.weight", (WIDTH, INNER), "Q8_0"),
            (f"blk.{layer}.ffn_up.weight", (WIDTH, INNER), "Q8_0"),
            (f"blk.{layer}.ffn_down.weight", (INNER, WIDTH), "Q8_0"),
        ]
    return str(gguf_writer.write(path, values, tensors, WORDS))


def write_projector(path: Path) -> str:
    """A small encoder of images that llama-server takes beside the tiny model."""
    width = 64
    values: dict[str, Any] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.vision.image_size": 224,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": width,
        "clip.vision.feed_forward_length": 128,
        "clip.vision.block_count": 2,
        "clip.vision.projection_dim": 64,
        "clip.vision.attention.head_count": 4,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
        "clip.use_gelu": True,
    }
    tensors: list[gguf_writer.Info] = [
        ("v.patch_embd.weight", (14, 14, 3, width), "F16"),
        ("v.patch_embd.bias", (width,), "F32"),
        ("v.position_embd.weight", (width, 256), "F32"),
        ("v.post_ln.weight", (width,), "F32"),
        ("v.post_ln.bias", (width,), "F32"),
        ("mm.input_projection.weight", (64, width), "F16"),
        ("mm.soft_emb_norm.weight", (width,), "F32"),
    ]
    for layer in range(2):
        shapes = {
            **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width)),
            "ffn_up": (width, 128),
            "ffn_down": (128, width),
        }
        for name, shape in shapes.items():
            tensors.append((f"v.blk.{layer}.{name}.weight", shape, "F16"))
            tensors.append((f"v.blk.{layer}.{name}.bias", (shape[1],), "F32"))
        for name in ("ln1", "ln2"):
            tensors.append((f"v.blk.{layer}.{name}.weight", (width,), "F32"))
            tensors.append((f"v.blk.{layer}.{name}.bias", (width,), "F32"))
    return str(gguf_writer.write(path, values, tensors))
