"""vLLM as an engine: what its command line, its metrics and its log are like. How it is driven is in ``serving``.

By itself vLLM takes a share of the whole GPU, 0.9 and more of it, and refuses to start where others hold too much for
that. It is told both how large its cache of keys and values is (``--kv-cache-memory-bytes``, which makes it leave out
its own measuring, that engines which start or end meanwhile would disturb) and which share it may hold in all
(``--gpu-memory-utilization``, which it still compares with what is free at its start).
"""

import math
import re
from collections.abc import Mapping

from gpud.backends.budget import BATCHED_TOKENS, DEFAULT_CONTEXT, GIB
from gpud.backends.dialect import VALUE, Dialect, Start
from gpud.backends.options import EngineOptions
from gpud.backends.serving import HubServer
from gpud.core.ports import Launcher

OWN_FLAGS = (
    "-tp",
    "--tensor-parallel-size",
    "-pp",
    "--pipeline-parallel-size",
    "-dp",
    "--data-parallel-size",
    "--config",
    "--uds",
    "--headless",
    "--disable-log-stats",
)
"""One GPU is what gpud gives a model; without its statistics nobody could see that it works."""


def command(start: Start) -> tuple[str, ...]:
    model, settings, budget = start.model, start.model.settings, start.budget
    share = budget.share_of(None if start.gpu is None else start.gpu.total_bytes)
    flags: list[str] = ["--served-model-name", model.name, *model.aliases]
    flags += ["--uds", start.endpoint.socket, "--disable-uvicorn-access-log"]
    flags += ["--max-model-len", str(settings.context or DEFAULT_CONTEXT)]
    flags += ["--max-num-batched-tokens", str(BATCHED_TOKENS)]
    if start.gpu is not None and budget.cache_bytes is not None:
        flags += ["--kv-cache-memory-bytes", str(budget.cache_bytes)]
    if share is not None:
        flags += ["--gpu-memory-utilization", f"{share:.4f}"]
    if settings.parallel is not None:
        flags += ["--max-num-seqs", str(settings.parallel)]
    if settings.chat_template:
        flags += ["--chat-template", settings.chat_template]
    return (start.program, "serve", start.target, *flags, *settings.extra_flags)


def environment(start: Start) -> Mapping[str, str]:
    told = {
        "VLLM_API_KEY": start.endpoint.key,
        # What it would tell its makers is nobody's business here.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if start.gpu is None and start.budget.cache_bytes is not None:
        told["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, math.floor(start.budget.cache_bytes / GIB)))
    return told


VLLM = Dialect(
    name="vllm",
    title="vLLM",
    program="vllm",
    command=command,
    environment=environment,
    gauges=re.compile(
        rb"^vllm:num_requests_(?:running|(?P<waits>waiting))" + VALUE,
        re.MULTILINE,
    ),
    stages=(
        (re.compile(r"Loading \S+ checkpoint shards: +(?P<percent>\d+)% "), "weights"),
        (re.compile(r"Starting to load model "), "weights"),
        (re.compile(r"Capturing CUDA graphs.*?: +(?P<percent>\d+)%"), "graphs"),
        (re.compile(r"Model loading took |torch\.compile"), "compiling"),
        (re.compile(r"GPU KV cache size: |Graph capturing finished"), "warming up"),
    ),
    ready=re.compile(r"Application startup complete"),
    on_socket=True,
    names_model=True,
    sleeps=True,
    own_flags=OWN_FLAGS,
)


def vllm(options: EngineOptions, launcher: Launcher) -> HubServer:
    return HubServer(VLLM, options, launcher)
