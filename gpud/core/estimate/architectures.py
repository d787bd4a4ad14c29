"""How each architecture uses memory, as a table: which layers have a cache, how large it is, what else they keep.

Everything in here is what llama.cpp does when it loads a model, not what the papers say. What needs a rule of its own
that is not written here yet (sparse-attention indexes, encoders with decoders, looped stacks) is not in the table.
"""

from collections.abc import Mapping
from enum import StrEnum

from gpud.core.record import Record


class Cache(StrEnum):
    """What a model remembers between tokens."""

    NONE = "none"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    HYBRID = "hybrid"


class Recurrent(StrEnum):
    """Which layers of a hybrid keep a state instead of keys and values."""

    WITHOUT_KV_HEADS = "without-kv-heads"
    WITHOUT_KV_HEADS_OR_FEED_FORWARD = "without-kv-heads-or-feed-forward"
    EVERY = "every"
    """All of them, besides their keys and values."""
    INTERVAL = "interval"
    """All but every so many-th."""


class Window(Record):
    """Layers that look back only so far.

    ``pattern`` is the distance between layers that see everything, the last of each such group, or the first where
    ``full_first``; 0 where only the file's own list says it. ``default`` is the width when the file names none;
    without one, a file that names none has no windows. ``fixed`` is a width that the file cannot change.
    ``only_layers`` is the depth that a model needs to have windows at all.
    """

    pattern: int = 0
    full_first: bool = False
    default: int = 0
    fixed: int = 0
    only_layers: int = 0
    every: bool = False


class Rules(Record):
    """One architecture.

    ``kv_layers`` is the number of layers that own keys and values where the others reuse theirs, ``lists_shared`` says
    that the file tells how many reuse. ``linear_heads``: the state is made of squares of the key length.
    ``ties_output``: without a tensor for the output, the embeddings serve as one; ``output_first``: and are then in
    memory twice even where nothing requires it. ``flash_attention`` False: it has none. ``embeds_apart``: as an
    embedding model it computes no output. ``hands_on_inner``: where GPUs follow each other, what they hand on is as
    wide as the inside of a layer. ``widths`` is a measure of its computation, see the module about that.
    """

    cache: Cache = Cache.ATTENTION
    window: Window | None = None
    recurrent: Recurrent | None = None
    interval: int = 0
    linear_heads: bool = False
    kv_layers: int = 0
    lists_shared: bool = False
    ties_output: bool = True
    output_first: bool = False
    flash_attention: bool = True
    embeds_apart: bool = False
    hands_on_inner: bool = False
    widths: float = 4.0


PLAIN = Rules()
_NARROW = Rules(widths=3.0)
_ENCODER = Rules(cache=Cache.NONE, ties_output=False, widths=3.0)
_DIFFUSION = Rules(cache=Cache.NONE)
_STATE = Rules(cache=Cache.RECURRENT, hands_on_inner=True)
_HYBRID = Rules(cache=Cache.HYBRID, recurrent=Recurrent.WITHOUT_KV_HEADS)
_SHORT_CONVOLUTION = Rules(
    cache=Cache.HYBRID,
    recurrent=Recurrent.WITHOUT_KV_HEADS,
    window=Window(every=True),
    widths=3.0,
    embeds_apart=True,
)
_NEMOTRON = Rules(cache=Cache.HYBRID, recurrent=Recurrent.WITHOUT_KV_HEADS_OR_FEED_FORWARD, hands_on_inner=True)
_DELTA = Rules(cache=Cache.HYBRID, recurrent=Recurrent.INTERVAL, interval=4)
_LISTED = Rules(window=Window())


def _windows(pattern: int, **more: int | bool) -> Rules:
    return Rules(window=Window(pattern, **more))  # type: ignore[arg-type]


def _named(names: str, rules: Rules) -> dict[str, Rules]:
    return dict.fromkeys(names.split(), rules)


_PLAIN_NAMES = """
llama deci falcon gpt2 gptneox mpt baichuan starcoder refact stablelm qwen qwen2 qwen2moe qwen2vl qwen3
qwen3moe qwen3vl qwen3vlmoe phi2 phimoe plamo orion internlm2 minicpm minicpm3 gemma starcoder2 xverse dbrx
olmo olmoe openelm arctic deepseek deepseek2 deepseek2-ocr glm4 glm4moe bitnet jais jais2 nemotron exaone
granite granitemoe chameleon plm bailingmoe bailingmoe2 dots1 arcee ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-
dense hunyuan_vl hy_v3 smollm3 seed_oss grovemoe apertus minimax-m2 cogvlm pangu-embedded mistral3 mistral4
paddleocr llama-embed maincoder
"""

ARCHITECTURES: Mapping[str, Rules] = {
    **_named(_PLAIN_NAMES, PLAIN),
    "phi3": _NARROW,
    "command-r": Rules(widths=5.0),
    "bloom": Rules(output_first=True),
    "chatglm": Rules(output_first=True),
    "grok": Rules(flash_attention=False),
    # Windows.
    "afmoe": _windows(4),
    "cohere2": Rules(window=Window(4), widths=5.0),
    "cohere2moe": _windows(4, full_first=True),
    "exaone-moe": _windows(4, default=128),
    "exaone4": _windows(4, default=4096, only_layers=64),
    "gemma2": _windows(2, default=4096),
    "gemma3": _windows(6),
    "gemma3n": Rules(window=Window(5), kv_layers=20, output_first=True, widths=9.4),
    "gemma4": Rules(window=Window(), lists_shared=True, output_first=True, widths=6.2),
    "gpt-oss": _windows(2),
    "granite_swa": _LISTED,
    "laguna": _windows(4, full_first=True),
    "llama4": _windows(4, fixed=8192, default=8192),
    "maple": _LISTED,
    "mellum": _windows(4),
    "mimo2": _LISTED,
    "muse-glimmer": _windows(4),
    "olmo2": _windows(4),
    "plamo3": _windows(8),
    "smallthinker": _windows(4, full_first=True, fixed=4096),
    "spark2_5": _LISTED,
    "step35": _LISTED,
    # States, alone and beside keys and values.
    **_named("mamba mamba2", _STATE),
    **_named("rwkv6 rwkv6qwen2 rwkv7 arwkv7", Rules(cache=Cache.RECURRENT, widths=15.5)),
    "falcon-h1": Rules(cache=Cache.HYBRID, recurrent=Recurrent.EVERY),
    "granitehybrid": _HYBRID,
    "jamba": Rules(cache=Cache.HYBRID, recurrent=Recurrent.WITHOUT_KV_HEADS, hands_on_inner=True, widths=3.0),
    "kimi-linear": _HYBRID,
    "lfm2": _SHORT_CONVOLUTION,
    "lfm2moe": _SHORT_CONVOLUTION,
    "minimax-01": Rules(cache=Cache.HYBRID, recurrent=Recurrent.INTERVAL, interval=8, linear_heads=True),
    "nemotron_h": _NEMOTRON,
    "nemotron_h_moe": _NEMOTRON,
    "plamo2": _HYBRID,
    "qwen3next": _DELTA,
    "qwen35": _DELTA,
    "qwen35moe": _DELTA,
    # Nothing that outlives a batch.
    **_named("bert modern-bert nomic-bert nomic-bert-moe neo-bert", _ENCODER),
    **_named("jina-bert-v2 jina-bert-v3 eurobert gemma-embedding", _ENCODER),
    **_named("dream llada llada-moe rnd1", _DIFFUSION),
}
