"""The variables that llama-server reads in place of flags: which flag each one is."""

_BY_VARIABLE = {
    "MODEL": "--model",
    "MODEL_URL": "--model-url",
    "HF_REPO": "--hf-repo",
    "HF_FILE": "--hf-file",
    "CTX_SIZE": "--ctx-size",
    "N_GPU_LAYERS": "--gpu-layers",
    "THREADS": "--threads",
    "N_PARALLEL": "--parallel",
    "BATCH": "--batch-size",
    "UBATCH": "--ubatch-size",
    "CACHE_TYPE_K": "--cache-type-k",
    "CACHE_TYPE_V": "--cache-type-v",
    "FLASH_ATTN": "--flash-attn",
    "N_CPU_MOE": "--n-cpu-moe",
    "OVERRIDE_TENSOR": "--override-tensor",
    "MMPROJ": "--mmproj",
    "MODEL_DRAFT": "--model-draft",
    "SPEC_DRAFT_MODEL": "--model-draft",
    "CHAT_TEMPLATE": "--chat-template",
    "CHAT_TEMPLATE_FILE": "--chat-template-file",
    "ALIAS": "--alias",
    "DEVICE": "--device",
    "MAIN_GPU": "--main-gpu",
    "SPLIT_MODE": "--split-mode",
    "TENSOR_SPLIT": "--tensor-split",
    "FIT_CTX": "--fit-ctx",
    "FIT_TARGET": "--fit-target",
    "HOST": "--host",
    "PORT": "--port",
    "API_KEY": "--api-key",
    "API_KEY_FILE": "--api-key-file",
}
_SWITCHES = {
    "CONT_BATCHING": ("--cont-batching", "--no-cont-batching"),
    "CPU_MOE": ("--cpu-moe", ""),
    "EMBEDDINGS": ("--embeddings", ""),
    "RERANKING": ("--reranking", ""),
    "ENDPOINT_METRICS": ("--metrics", ""),
    "ENDPOINT_SLOTS": ("--slots", "--no-slots"),
    "ENDPOINT_PROPS": ("--props", ""),
    "NO_WEBUI": ("--no-webui", ""),
    "WEBUI": ("--webui", "--no-webui"),
    "JINJA": ("--jinja", "--no-jinja"),
    "OFFLINE": ("--offline", ""),
}


def as_flags(name: str, value: str) -> list[str] | None:
    """The flags for which llama-server takes a variable; None for a variable that is none of these."""
    if not name.startswith("LLAMA_ARG_"):
        return ["--api-key", value] if name == "LLAMA_API_KEY" else None
    short = name.removeprefix("LLAMA_ARG_")
    if short in _BY_VARIABLE:
        return [_BY_VARIABLE[short], value]
    if short in _SWITCHES:
        on, off = _SWITCHES[short]
        flag = on if value.lower() in ("1", "true", "on", "enabled") else off
        return [flag] if flag else []
    return None
