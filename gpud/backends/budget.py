"""How much memory a server of SafeTensors is to take, decided before it starts: it would take the whole GPU else.

The figures follow from the configuration and the model's files alone, never from what was free or measured: what such
a server is given it fills, and a figure that followed its own measurement would drift from load to load.
"""

import math
from itertools import pairwise

from gpud.backends.custom_plan import unfit
from gpud.backends.hub import HubModel
from gpud.core.budget import MIB, describe
from gpud.core.facts import Model
from gpud.core.learning import UNKNOWN_RESIDUAL_BYTES
from gpud.core.quote import Estimate, Part, Source
from gpud.core.record import Record

GIB = 1024 * MIB

BATCHED_TOKENS = 2048
"""So many tokens of prompts are computed at a time: what activations take follows from it."""

REST_BYTES = 2 * GIB
"""Activations of so many tokens, graphs and the sampler: 0.6 MiB a token were seen with models of 0.6 to 8 billion
parameters, and half a GiB of graphs. What a first load really took is learned."""

CONTEXT_BYTES = UNKNOWN_RESIDUAL_BYTES
"""The driver's context, which these servers do not count."""

HOST_BYTES = 2 * GIB
"""Two processes with PyTorch and its libraries, in host memory."""

DEFAULT_CONTEXT = 4096

CACHE_SLACK = 1.03
CACHE_SPARE_BYTES = 64 * MIB
"""Tokens come in blocks, one of which stays empty, and layers are padded to one another."""

LEAST_CACHE_BYTES = GIB
"""Where it is not known what a token takes: that, or a quarter of the weights."""


class Budget(Record):
    """``cache_bytes`` are for keys and values; None: all that ``total_bytes`` leaves, by the server's own count."""

    total_bytes: int
    weights_bytes: int = 0
    cache_bytes: int | None = None
    source: Source = Source.DECLARED

    def share_of(self, device_bytes: int | None) -> float | None:
        """The part of a whole GPU that the server may take, its context aside; rounded down."""
        if not device_bytes:
            return None
        share = math.floor((self.total_bytes - CONTEXT_BYTES) / device_bytes * 10_000) / 10_000
        return min(0.99, max(0.01, share))

    def estimate(self, *, on_gpu: bool) -> Estimate:
        cache = self.cache_bytes or 0
        if not on_gpu:
            rest = max(0, self.total_bytes - self.weights_bytes - cache)
            return Estimate("", (Part("Host", None, self.weights_bytes, cache, 0, rest),), self.source)
        rest = max(0, self.total_bytes - self.weights_bytes - cache - CONTEXT_BYTES)
        gpu = Part("GPU0", 0, self.weights_bytes, cache, 0, rest)
        return Estimate("", (gpu, Part("Host", None, compute_bytes=HOST_BYTES)), self.source)


def of(model: Model, found: HubModel | None, title: str, *, on_gpu: bool) -> Budget:
    """Raises BackendFailed(preflight) where it is not known, or where the declared size cannot do."""
    size = model.size_bytes
    if found is None:
        if size is None:
            name = model.settings.hub_name
            raise unfit(
                model,
                f'"{name}" is not in the cache of Hugging Face, so that nobody knows what it needs',
                f'download it first (hf download {name}), or set "size" to all that {title} may take',
                "size-unknown",
            )
        return Budget(size)
    fixed = found.weights_bytes + (REST_BYTES + CONTEXT_BYTES if on_gpu else HOST_BYTES)
    least = _least_cache(model, found)
    if size is None:
        cache = least if least is not None else max(LEAST_CACHE_BYTES, found.weights_bytes // 4)
        if not on_gpu:
            cache = GIB * math.ceil(cache / GIB)
        source = Source.FORMULA if least is not None else Source.GUESS
        return Budget(fixed + cache, found.weights_bytes, cache, source)
    cache = size - fixed
    if cache < (least or 1):
        context = model.settings.context or DEFAULT_CONTEXT
        wanted = "" if least is None else f", and a context of {context} takes {describe(least)}"
        raise unfit(
            model,
            f"its size of {describe(size)} leaves {describe(max(0, cache))} for keys and values after "
            f"{describe(found.weights_bytes)} of weights and {describe(fixed - found.weights_bytes)} for the rest"
            f"{wanted}",
            f"raise its size to {describe(fixed + (least or LEAST_CACHE_BYTES))}, lower its context, or leave size out",
            "size-too-small",
        )
    return Budget(size, found.weights_bytes, cache)


def _least_cache(model: Model, found: HubModel) -> int | None:
    """What one whole context takes: less, and the server refuses to start."""
    if found.token_bytes is None:
        return None
    token = found.token_bytes
    if any(text.startswith("fp8") for text in _values(model, "--kv-cache-dtype")):
        token = math.ceil(token / 2)
    return int((model.settings.context or DEFAULT_CONTEXT) * token * CACHE_SLACK) + CACHE_SPARE_BYTES


def _values(model: Model, flag: str) -> list[str]:
    flags = model.settings.extra_flags
    following = [after for one, after in pairwise(flags) if one == flag]
    return [*following, *(one.partition("=")[2] for one in flags if one.startswith(f"{flag}="))]
