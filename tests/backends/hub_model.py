"""Models as Hugging Face lays them out, small on the disk and large in what they say."""

import json
import struct
from pathlib import Path

GIB = 1 << 30

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
"""131072 bytes a token: 32 layers, keys and values, 8 heads of 128, 2 bytes."""

TOKEN_BYTES = 131072


def write(
    folder: Path, *, weights_bytes: int = 4 * GIB, shards: int = 2, config: dict[str, object] | None = None
) -> Path:
    """A folder with so many files of weights, which together claim this size and are empty but for their headers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B if config is None else config))
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    if shards == 1:
        names = ["model.safetensors"]
    else:
        weights = {f"layer.{number}": name for number, name in enumerate(names)}
        index = {"metadata": {"total_size": weights_bytes}, "weight_map": weights}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", 2) + b"{}")
            file.truncate(weights_bytes // shards)
    return folder


def cached(hub: Path, name: str, **settings: object) -> Path:
    """The same in the cache of Hugging Face's library."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    return write(repository / "snapshots" / "abc123", **settings)  # type: ignore[arg-type]
