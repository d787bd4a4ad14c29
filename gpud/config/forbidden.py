"""What a configuration may not hand to an engine, because gpud decides it or because it would open the machine."""

from gpud.config.kinds import Wrong
from gpud.core.vendors import VISIBLE, VULKAN_VISIBLE

_OWN_KEY = "gpud gives every start a key of its own"
_PRIVATE = "gpud listens for the engine on a private address"
_DANGER = "it would let whoever may ask the engine read, write or run things on this machine; gpud never allows it"
_LEARN = "gpud places models itself and needs the engine to do as it is told"

# Flag → the key to use instead, or (with a blank in it) the reason why there is none.
_FLAGS: dict[str, str] = {
    "--host": _PRIVATE,
    "--port": _PRIVATE,
    "--reuse-port": _PRIVATE,
    "--api-prefix": _PRIVATE,
    "--ssl-key-file": _PRIVATE,
    "--ssl-cert-file": _PRIVATE,
    "--model": "file",
    "-m": "file",
    "--model-url": "file",
    "-mu": "file",
    "--docker-repo": "file",
    "-dr": "file",
    "--hf-repo": "file",
    "-hf": "file",
    "-hfr": "file",
    "--hf-file": "file",
    "-hff": "file",
    "--models-dir": "file",
    "--models-preset": "file",
    "--models-max": "gpud decides which models are loaded",
    "--alias": "aliases",
    "-a": "aliases",
    "--model-alias": "aliases",
    "--api-key": _OWN_KEY,
    "--api-key-file": _OWN_KEY,
    "--log-jsonl": "gpud reads the engine's log and chooses its form",
    "--log-disable": "gpud reads the engine's log and chooses its form",
    "--log-file": "gpud reads the engine's log and passes it to the journal",
    "--fit": _LEARN,
    "-fit": _LEARN,
    "--fit-target": _LEARN,
    "-fitt": _LEARN,
    "--fit-ctx": _LEARN,
    "-fitc": _LEARN,
    "--no-slots": "gpud asks the engine's slots whether it is busy",
    "--sleep-idle-seconds": "idle_timeout",
    "--slot-save-path": _DANGER,
    "--tools": _DANGER,
    "--agent": _DANGER,
    "-ag": _DANGER,
    "--path": _DANGER,
    "--rpc": _DANGER,
    "--media-path": _DANGER,
    "--ctx-size": "context",
    "-c": "context",
    "--gpu-layers": "layers",
    "--n-gpu-layers": "layers",
    "-ngl": "layers",
    "--threads": "threads",
    "-t": "threads",
    "--parallel": "parallel",
    "-np": "parallel",
    "--batch-size": "batch",
    "-b": "batch",
    "--ubatch-size": "micro_batch",
    "-ub": "micro_batch",
    "--cache-type-k": "cache_type_k",
    "-ctk": "cache_type_k",
    "--cache-type-v": "cache_type_v",
    "-ctv": "cache_type_v",
    "--flash-attn": "flash_attention",
    "-fa": "flash_attention",
    "--cont-batching": "continuous_batching",
    "-cb": "continuous_batching",
    "--no-cont-batching": "continuous_batching",
    "-nocb": "continuous_batching",
    "--n-cpu-moe": "cpu_moe",
    "-ncmoe": "cpu_moe",
    "--override-tensor": "override_tensor",
    "-ot": "override_tensor",
    "--mmproj": "mmproj",
    "-mm": "mmproj",
    "--model-draft": "draft_file",
    "-md": "draft_file",
    "--spec-draft-model": "draft_file",
    "--chat-template": "chat_template",
    "--embedding": "embeddings",
    "--embeddings": "embeddings",
    "--rerank": "reranking",
    "--reranking": "reranking",
}

# vLLM's and text-generation-inference's.
_FLAGS |= {
    "--uds": _PRIVATE,
    "--hostname": _PRIVATE,
    "--ssl-keyfile": _PRIVATE,
    "--ssl-certfile": _PRIVATE,
    "--root-path": _PRIVATE,
    "--shard-uds-path": _PRIVATE,
    "--master-port": _PRIVATE,
    "--served-model-name": "aliases",
    "--model-id": "file",
    "--gpu-memory-utilization": "size",
    "--kv-cache-memory-bytes": "size",
    "--cuda-memory-fraction": "size",
    "--max-model-len": "context",
    "--max-total-tokens": "context",
    "--max-num-seqs": "parallel",
    "--max-batch-size": "parallel",
    "--disable-log-stats": "gpud asks the engine's metrics whether it is busy",
    "--enable-log-requests": "it would write prompts into the journal",
    "--enable-log-outputs": "it would write answers into the journal",
    "--tool-server": _DANGER,
    "--allowed-local-media-path": _DANGER,
    "--middleware": _DANGER,
}

# llama-cpp-python's names for the same things.
_FLAGS |= {
    "--n-ctx": "context",
    "--n-threads": "threads",
    "--n-batch": "batch",
    "--n-ubatch": "micro_batch",
    "--type-k": "cache_type_k",
    "--type-v": "cache_type_v",
    "--clip-model-path": "mmproj",
    "--chat-format": "chat_template",
    "--config-file": "gpud hands over everything that the engine is to know",
    "--interrupt-requests": "gpud never lets one request cut another",
}

_GPU_CHOICE = 'gpud chooses the GPU; use "gpu" to choose it yourself'

# Variable, or its beginning with a * → why not.
_VARIABLES: dict[str, str] = {
    "LLAMA_API_KEY*": _OWN_KEY,
    "LLAMA_SERVER_ROUTER_PORT": "gpud speaks that protocol with the engine itself",
    "LLAMA_ARG_LOG_JSONL": "gpud reads the engine's log and chooses its form",
    "LLAMA_ARG_TOOLS*": _DANGER,
    "LLAMA_ARG_AGENT*": _DANGER,
    "LLAMA_ARG_MCP*": _DANGER,
    "LLAMA_ARG_UI_MCP*": _DANGER,
    "LLAMA_ARG_WEBUI_MCP*": _DANGER,
    "LLAMA_ARG_MEDIA_PATH": _DANGER,
    "LLAMA_ARG_SLOT_SAVE*": _DANGER,
    "LLAMA_ARG_STATIC_PATH": _DANGER,
    "LLAMA_ARG_RPC": _DANGER,
    "LLAMA_ARG_API_KEY*": _OWN_KEY,
    "LLAMA_ARG_HOST": _PRIVATE,
    "LLAMA_ARG_PORT": _PRIVATE,
    "LLAMA_ARG_API_PREFIX": _PRIVATE,
    "LLAMA_ARG_SSL_*": _PRIVATE,
    "LLAMA_ARG_MODEL*": 'use "file"',
    "LLAMA_ARG_HF_*": 'use "file"',
    "LLAMA_ARG_DOCKER*": 'use "file"',
    "VLLM_API_KEY": _OWN_KEY,
    "VLLM_SERVER_DEV_MODE": _DANGER,
    "VLLM_CPU_KVCACHE_SPACE": 'use "size"',
    "OLLAMA_HOST": 'use "host" and "port" of engines.ollama',
    "OLLAMA_MODELS": 'use "models_dir" of engines.ollama',
    "OLLAMA_KEEP_ALIVE": 'gpud decides when a model is idle; use "idle_timeout"',
    **dict.fromkeys((*VISIBLE, VULKAN_VISIBLE), _GPU_CHOICE),
    "NOTIFY_SOCKET": "it belongs to gpud and systemd",
    "WATCHDOG_*": "it belongs to gpud and systemd",
    "LISTEN_*": "it belongs to gpud and systemd",
}


def check_flag(flag: str) -> None:
    """Raises Wrong for a flag that gpud owns, whether its value stands beside it or after ``=``."""
    if "\0" in flag:
        raise Wrong("holds a NUL character")
    if not flag.startswith("-"):
        return
    name = flag.partition("=")[0]
    if name.startswith("--"):
        name = name.replace("_", "-").lower()
    reason = _DANGER if name.startswith(("--mcp-", "--ui-mcp-", "--webui-mcp-", "--tools-")) else _FLAGS.get(name)
    if reason is None:
        return
    raise Wrong(
        f"may not be given here: {reason}" if " " in reason else f'may not be given here; use the key "{reason}"'
    )


def check_variable(name: str) -> None:
    """Raises Wrong for a variable that gpud sets itself or keeps away from engines."""
    for pattern, reason in _VARIABLES.items():
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            raise Wrong(f"may not be set here: {reason}")
