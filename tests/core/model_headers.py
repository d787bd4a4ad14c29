"""The headers of published models: their metadata and the shapes and types of their tensors, without any weight.

Shapes are those of the published configurations, types those of the usual quantizations (``Q4_K_M``: one half of the
value and down projections in ``Q6_K``). ``HEADERS`` has one model for each way in which an architecture uses memory.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog import gguf_writer

from gpud.core.modelfile import ModelFile, Tensor, Value

Info = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Header:
    """One model. ``values`` are without the architecture in front of their keys, except those of the tokenizer."""

    name: str
    architecture: str
    values: Mapping[str, Value | Sequence[float] | str]
    tensors: tuple[Info, ...]
    vocabulary: int

    @property
    def metadata(self) -> dict[str, Value | Sequence[float] | str]:
        own = {
            key if key.startswith("tokenizer.") else f"{self.architecture}.{key}": value
            for key, value in self.values.items()
        }
        return {"general.architecture": self.architecture, "general.name": self.name, **own}

    def file(self) -> ModelFile:
        """What the reader makes of the written file."""
        tensors = tuple(Tensor(name, shape, kind, size(shape, kind)) for name, shape, kind in self.tensors)
        values = {key: tuple(v) if isinstance(v, list | tuple) else v for key, v in self.metadata.items()}
        return ModelFile(self.architecture, values, tensors, self.vocabulary, sum(t.bytes for t in tensors))

    def write(self, path: Path) -> Path:
        """A file of the right size that takes some kilobytes."""
        return gguf_writer.write(path, self.metadata, self.tensors, self.vocabulary or None)


def size(shape: Sequence[int], kind: str) -> int:
    _, block, block_bytes = gguf_writer.KINDS[kind]
    return math.prod(shape) // block * block_bytes


FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


class Quantized:
    """The type that a mix gives to each tensor; what has odd rows gets a type with smaller blocks."""

    def __init__(self, layers: int, most: str = "Q4_K", better: str = "Q6_K", experts: str | None = None) -> None:
        self.layers = layers
        self.most = most
        self.better = better
        self.experts = experts or most

    def uses_better(self, layer: int) -> bool:
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2

    def __call__(self, name: str, shape: Sequence[int]) -> str:
        if name.endswith(("norm.weight", "bias", "ssm_a", "ssm_d", "sinks.weight", "gate_inp.weight")):
            return "F32"
        if any(part in name for part in ("rope_factors", "conv1d", "shortconv.conv", "altup", "gate_inp_shexp")):
            return "F32"
        kind = self.experts if "_exps" in name else self.most
        if name == "output.weight" and self.better:
            kind = self.better
        if ("attn_v." in name or "ffn_down" in name) and self.uses_better(int(name.split(".")[1])):
            kind = self.better if kind == self.most else kind
        block = gguf_writer.KINDS[kind][1]
        return FALLBACK.get(kind, "F16") if shape[0] % block else kind


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def build(
    name: str,
    architecture: str,
    values: Mapping[str, Value | Sequence[int] | str],
    layer: Callable[[int], Shapes],
    *,
    vocabulary: int,
    tied: bool = False,
    extra: Sequence[tuple[str, tuple[int, ...]]] = (),
    mix: Quantized | None = None,
    output_norm: str = "output_norm.weight",
) -> Header:
    layers = values["block_count"]
    width = values["embedding_length"]
    assert isinstance(layers, int) and isinstance(width, int)
    kinds = mix or Quantized(layers)
    shapes: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (width, vocabulary)), (output_norm, (width,))]
    if not tied:
        shapes.append(("output.weight", (width, vocabulary)))
    shapes += extra
    for number in range(layers):
        shapes += [(f"blk.{number}.{part}", shape) for part, shape in layer(number)]
    tensors = tuple((tensor, shape, kinds(tensor, shape)) for tensor, shape in shapes)
    return Header(name, architecture, values, tensors, vocabulary)


def attention(width: int, q: int, k: int, v: int | None = None, *, bias: bool = False, norm: int = 0) -> Shapes:
    v = k if v is None else v
    yield "attn_norm.weight", (width,)
    for letter, rows in (("q", q), ("k", k), ("v", v)):
        yield f"attn_{letter}.weight", (width, rows)
        if bias:
            yield f"attn_{letter}.bias", (rows,)
    yield "attn_output.weight", (q, width)
    if norm:
        yield "attn_q_norm.weight", (norm,)
        yield "attn_k_norm.weight", (norm,)


def feed_forward(width: int, inner: int) -> Shapes:
    yield "ffn_norm.weight", (width,)
    yield from gated(width, inner)


def gated(width: int, inner: int, suffix: str = "") -> Shapes:
    yield f"ffn_gate{suffix}.weight", (width, inner)
    yield f"ffn_up{suffix}.weight", (width, inner)
    yield f"ffn_down{suffix}.weight", (inner, width)


def experts(width: int, inner: int, count: int) -> Shapes:
    yield "ffn_gate_inp.weight", (width, count)
    yield "ffn_gate_exps.weight", (width, inner, count)
    yield "ffn_up_exps.weight", (width, inner, count)
    yield "ffn_down_exps.weight", (inner, width, count)


def dense(
    name: str,
    architecture: str,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head: int,
    inner: int,
    vocabulary: int,
    trained: int,
    tied: bool = False,
    bias: bool = False,
    norm: bool = False,
    post: bool = False,
    values: Mapping[str, Value] | None = None,
    extra: Sequence[tuple[str, tuple[int, ...]]] = (),
    mix: Quantized | None = None,
    more: Callable[[int], Shapes] = lambda _: iter(()),
) -> Header:
    """A plain transformer: attention and a gated feed-forward network in every layer."""

    def layer(number: int) -> Shapes:
        yield from attention(width, heads * head, kv_heads * head, bias=bias, norm=head if norm else 0)
        yield from feed_forward(width, inner)
        if post:
            yield "post_attention_norm.weight", (width,)
            yield "post_ffw_norm.weight", (width,)
        yield from more(number)

    return build(
        name,
        architecture,
        {
            **common(layers, width, heads, kv_heads, trained),
            "attention.key_length": head,
            "attention.value_length": head,
            "feed_forward_length": inner,
            **(values or {}),
        },
        layer,
        vocabulary=vocabulary,
        tied=tied,
        extra=extra,
        mix=mix,
    )


def common(layers: int, width: int, heads: int, kv_heads: Value, trained: int) -> dict[str, Value]:
    return {
        "block_count": layers,
        "context_length": trained,
        "embedding_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }


def llama() -> Header:
    return dense(
        "Llama-3.1-8B-Instruct",
        "llama",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        head=128,
        inner=14336,
        vocabulary=128256,
        trained=131072,
        extra=[("rope_freqs.weight", (64,))],
        mix=Rope(32),
    )


class Rope(Quantized):
    def __call__(self, name: str, shape: Sequence[int]) -> str:
        return "F32" if name == "rope_freqs.weight" else super().__call__(name, shape)


def small_llama() -> Header:
    return dense(
        "Llama-3.2-1B-Instruct",
        "llama",
        layers=16,
        width=2048,
        heads=32,
        kv_heads=8,
        head=64,
        inner=8192,
        vocabulary=128256,
        trained=131072,
        tied=True,
        extra=[("rope_freqs.weight", (32,))],
        mix=Rope(16),
    )


def mixtral() -> Header:
    def layer(_: int) -> Shapes:
        yield from attention(4096, 4096, 1024)
        yield "ffn_norm.weight", (4096,)
        yield from experts(4096, 14336, 8)

    values = {
        **common(32, 4096, 32, 8, 32768),
        "feed_forward_length": 14336,
        "expert_count": 8,
        "expert_used_count": 2,
    }
    return build("Mixtral-8x7B-Instruct-v0.1", "llama", values, layer, vocabulary=32000)


def mistral() -> Header:
    return dense(
        "Ministral-3-8B-Instruct-2512",
        "mistral3",
        layers=34,
        width=4096,
        heads=32,
        kv_heads=8,
        head=128,
        inner=14336,
        vocabulary=131072,
        trained=262144,
        values={"rope.scaling.original_context_length": 16384, "attention.temperature_scale": 0.1},
    )


def qwen2() -> Header:
    return dense(
        "Qwen2.5-7B-Instruct",
        "qwen2",
        layers=28,
        width=3584,
        heads=28,
        kv_heads=4,
        head=128,
        inner=18944,
        vocabulary=152064,
        trained=32768,
        bias=True,
    )


def qwen3() -> Header:
    return dense(
        "Qwen3-8B",
        "qwen3",
        layers=36,
        width=4096,
        heads=32,
        kv_heads=8,
        head=128,
        inner=12288,
        vocabulary=151936,
        trained=40960,
        norm=True,
    )


def qwen3moe() -> Header:
    def layer(_: int) -> Shapes:
        yield from attention(2048, 4096, 512, norm=128)
        yield "ffn_norm.weight", (2048,)
        yield from experts(2048, 768, 128)

    values = {
        **common(48, 2048, 32, 4, 40960),
        "attention.key_length": 128,
        "attention.value_length": 128,
        "feed_forward_length": 6144,
        "expert_count": 128,
        "expert_used_count": 8,
        "expert_feed_forward_length": 768,
    }
    return build("Qwen3-30B-A3B", "qwen3moe", values, layer, vocabulary=151936)


def gemma2() -> Header:
    return dense(
        "gemma-2-9b-it",
        "gemma2",
        layers=42,
        width=3584,
        heads=16,
        kv_heads=8,
        head=256,
        inner=14336,
        vocabulary=256000,
        trained=8192,
        tied=True,
        post=True,
        values={"attention.sliding_window": 4096},
        mix=Tied(42),
    )


class Tied(Quantized):
    """Embeddings that are also the output are kept better."""

    def __call__(self, name: str, shape: Sequence[int]) -> str:
        return "Q6_K" if name == "token_embd.weight" else super().__call__(name, shape)


def gemma3() -> Header:
    return dense(
        "gemma-3-12b-it",
        "gemma3",
        layers=48,
        width=3840,
        heads=16,
        kv_heads=8,
        head=256,
        inner=15360,
        vocabulary=262144,
        trained=131072,
        tied=True,
        norm=True,
        post=True,
        values={"attention.sliding_window": 1024},
        mix=Tied(48),
    )


def gemma3n() -> Header:
    def more(_: int) -> Shapes:
        yield "inp_gate.weight", (2048, 256)
        yield "proj.weight", (256, 2048)
        yield "post_norm.weight", (2048,)
        yield "altup_correct_coef.weight", (4, 4)
        yield "altup_correct_scale.weight", (2048,)
        yield "altup_predict_coef.weight", (4, 16)
        yield "altup_router.weight", (2048, 4)
        yield "altup_router_norm.weight", (2048,)
        yield "laurel_l.weight", (2048, 64)
        yield "laurel_r.weight", (64, 2048)
        yield "laurel_post_norm.weight", (2048,)

    return dense(
        "gemma-3n-E4B-it",
        "gemma3n",
        layers=35,
        width=2048,
        heads=8,
        kv_heads=2,
        head=256,
        inner=16384,
        vocabulary=262144,
        trained=32768,
        tied=True,
        norm=True,
        post=True,
        values={"attention.sliding_window": 512},
        extra=[
            ("altup_proj.weight", (2048, 2048, 3)),
            ("altup_unembd_proj.weight", (2048, 2048, 3)),
            ("per_layer_token_embd.weight", (256 * 35, 262144)),
            ("per_layer_model_proj.weight", (2048, 256 * 35)),
            ("per_layer_proj_norm.weight", (256,)),
        ],
        mix=Tied(35),
        more=more,
    )


def phi3() -> Header:
    def layer(_: int) -> Shapes:
        yield "attn_norm.weight", (3072,)
        yield "attn_qkv.weight", (3072, 9216)
        yield "attn_output.weight", (3072, 3072)
        yield "ffn_norm.weight", (3072,)
        yield "ffn_down.weight", (8192, 3072)
        yield "ffn_up.weight", (3072, 16384)

    values = {
        **common(32, 3072, 32, 32, 131072),
        "feed_forward_length": 8192,
        "rope.dimension_count": 96,
        "attention.sliding_window": 262144,
    }
    extra = [("rope_factors_long.weight", (48,)), ("rope_factors_short.weight", (48,))]
    return build("Phi-3.5-mini-instruct", "phi3", values, layer, vocabulary=32064, extra=extra)


def deepseek2() -> Header:
    def layer(number: int) -> Shapes:
        yield "attn_norm.weight", (2048,)
        yield "attn_kv_a_norm.weight", (512,)
        yield "attn_q.weight", (2048, 16 * 192)
        yield "attn_kv_a_mqa.weight", (2048, 576)
        yield "attn_k_b.weight", (128, 512, 16)
        yield "attn_v_b.weight", (512, 128, 16)
        yield "attn_output.weight", (2048, 2048)
        yield "ffn_norm.weight", (2048,)
        if number < 1:
            yield from gated(2048, 10944)
        else:
            yield from experts(2048, 1408, 64)
            yield from gated(2048, 2816, "_shexp")

    values = {
        **common(27, 2048, 16, 1, 163840),
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "feed_forward_length": 10944,
        "leading_dense_block_count": 1,
        "expert_count": 64,
        "expert_used_count": 6,
        "expert_shared_count": 2,
        "expert_feed_forward_length": 1408,
        "expert_weights_scale": 1.0,
    }
    return build("DeepSeek-V2-Lite-Chat", "deepseek2", values, layer, vocabulary=102400)


def granite_hybrid() -> Header:
    attentive = {5, 15, 25, 35}

    def layer(number: int) -> Shapes:
        if number in attentive:
            yield from attention(1536, 1536, 512)
        else:
            yield "attn_norm.weight", (1536,)
            yield from mamba2_mixer(1536, 3072, 128, 1, 48)
        yield "ffn_norm.weight", (1536,)
        yield from experts(1536, 512, 64)
        yield from gated(1536, 1024, "_shexp")

    values = {
        **common(40, 1536, 12, tuple(4 if n in attentive else 0 for n in range(40)), 131072),
        "feed_forward_length": 512,
        "expert_shared_feed_forward_length": 1024,
        "expert_count": 64,
        "expert_used_count": 6,
        **state_space(4, 3072, 128, 48, 1),
    }
    return build("granite-4.0-h-tiny", "granitehybrid", values, layer, vocabulary=100352, tied=True, mix=Tied(40))


def state_space(kernel: int, inner: int, state: int, rank: int, groups: int | None) -> dict[str, Value]:
    made: dict[str, Value] = {
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
    }
    return made if groups is None else {**made, "ssm.group_count": groups}


def mamba2_mixer(width: int, inner: int, state: int, groups: int, heads: int) -> Shapes:
    convolved = inner + 2 * groups * state
    yield "ssm_in.weight", (width, inner + convolved + heads)
    yield "ssm_conv1d.weight", (4, convolved)
    yield "ssm_conv1d.bias", (convolved,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (inner // groups, groups)
    yield "ssm_out.weight", (inner, width)


def mamba_mixer(width: int, inner: int, state: int, rank: int) -> Shapes:
    yield "ssm_in.weight", (width, 2 * inner)
    yield "ssm_conv1d.weight", (4, inner)
    yield "ssm_conv1d.bias", (inner,)
    yield "ssm_x.weight", (inner, rank + 2 * state)
    yield "ssm_dt.weight", (rank, inner)
    yield "ssm_dt.bias", (inner,)
    yield "ssm_a", (state, inner)
    yield "ssm_d", (inner,)
    yield "ssm_out.weight", (inner, width)


def jamba() -> Header:
    def layer(number: int) -> Shapes:
        if number % 8 == 4:
            yield from attention(4096, 4096, 1024)
        else:
            yield "attn_norm.weight", (4096,)
            yield from mamba_mixer(4096, 8192, 16, 256)
            yield "ssm_dt_norm.weight", (256,)
            yield "ssm_b_norm.weight", (16,)
            yield "ssm_c_norm.weight", (16,)
        yield "ffn_norm.weight", (4096,)
        if number % 2 == 1:
            yield from experts(4096, 14336, 16)
        else:
            yield from gated(4096, 14336)

    values = {
        **common(32, 4096, 32, tuple(8 if n % 8 == 4 else 0 for n in range(32)), 262144),
        "feed_forward_length": 14336,
        "expert_count": 16,
        "expert_used_count": 2,
        **state_space(4, 8192, 16, 256, None),
    }
    return build("Jamba-v0.1", "jamba", values, layer, vocabulary=65536)


def mamba() -> Header:
    def layer(_: int) -> Shapes:
        yield "attn_norm.weight", (4096,)
        yield from mamba_mixer(4096, 8192, 16, 256)

    values = {
        "block_count": 64,
        "context_length": 1048576,
        "embedding_length": 4096,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.dt_b_c_rms": True,
        **state_space(4, 8192, 16, 256, None),
    }
    return build("falcon-mamba-7b", "mamba", values, layer, vocabulary=65024)


def mamba2() -> Header:
    def layer(_: int) -> Shapes:
        yield "attn_norm.weight", (2048,)
        yield from mamba2_mixer(2048, 4096, 128, 1, 64)

    values = {
        "block_count": 48,
        "context_length": 1048576,
        "embedding_length": 2048,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        **state_space(4, 4096, 128, 64, 1),
    }
    return build("mamba2-1.3b", "mamba2", values, layer, vocabulary=50288, tied=True, mix=Tied(48))


def gpt_oss() -> Header:
    def layer(_: int) -> Shapes:
        yield from attention(2880, 4096, 512, bias=True)
        yield "attn_output.bias", (2880,)
        yield "attn_sinks.weight", (64,)
        yield "post_attention_norm.weight", (2880,)
        yield from experts(2880, 2880, 32)
        yield "ffn_gate_inp.bias", (32,)
        for part in ("gate", "up", "down"):
            yield f"ffn_{part}_exps.bias", (2880, 32)

    values = {
        **common(24, 2880, 64, 8, 131072),
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.sliding_window": 128,
        "feed_forward_length": 2880,
        "expert_count": 32,
        "expert_used_count": 4,
        "expert_feed_forward_length": 2880,
        "rope.dimension_count": 64,
    }
    mix = Quantized(24, "Q8_0", "Q8_0", experts="MXFP4")
    return build("gpt-oss-20b", "gpt-oss", values, layer, vocabulary=201088, mix=mix)


def llama4() -> Header:
    def layer(_: int) -> Shapes:
        yield from attention(5120, 5120, 1024)
        yield "ffn_norm.weight", (5120,)
        yield from experts(5120, 8192, 16)
        yield from gated(5120, 8192, "_shexp")

    values = {
        **common(48, 5120, 40, 8, 10485760),
        "attention.key_length": 128,
        "attention.value_length": 128,
        "rope.dimension_count": 128,
        "feed_forward_length": 16384,
        "expert_feed_forward_length": 8192,
        "expert_count": 16,
        "expert_used_count": 1,
        "interleave_moe_layer_step": 1,
    }
    return build("Llama-4-Scout-17B-16E-Instruct", "llama4", values, layer, vocabulary=202048)


def qwen3next() -> Header:
    def layer(number: int) -> Shapes:
        if number % 4 == 3:
            yield from attention(2048, 8192, 512, norm=256)
        else:
            yield "attn_norm.weight", (2048,)
            yield "attn_qkv.weight", (2048, 8192)
            yield "attn_gate.weight", (2048, 4096)
            yield "ssm_conv1d.weight", (4, 8192)
            yield "ssm_dt.bias", (32,)
            yield "ssm_a", (32,)
            yield "ssm_ba.weight", (2048, 64)
            yield "ssm_norm.weight", (128,)
            yield "ssm_out.weight", (4096, 2048)
        yield "post_attention_norm.weight", (2048,)
        yield from experts(2048, 512, 512)
        yield "ffn_gate_inp_shexp.weight", (2048,)
        yield from gated(2048, 512, "_shexp")

    def gated_query(number: int) -> Shapes:
        for name, shape in layer(number):
            yield name, (4096, 2048) if name == "attn_output.weight" else shape

    values = {
        **common(48, 2048, 16, 2, 262144),
        "attention.key_length": 256,
        "attention.value_length": 256,
        "rope.dimension_count": 64,
        "feed_forward_length": 5120,
        "expert_count": 512,
        "expert_used_count": 10,
        "expert_feed_forward_length": 512,
        "expert_shared_feed_forward_length": 512,
        **state_space(4, 4096, 128, 32, 16),
    }
    return build("Qwen3-Next-80B-A3B-Instruct", "qwen3next", values, gated_query, vocabulary=151936)


def glm4moe() -> Header:
    def layer(number: int) -> Shapes:
        yield from attention(4096, 12288, 1024, bias=True)
        yield "post_attention_norm.weight", (4096,)
        if number < 1:
            yield from gated(4096, 10944)
        else:
            yield from experts(4096, 1408, 128)
            yield "exp_probs_b.bias", (128,)
            yield from gated(4096, 1408, "_shexp")
        if number == 46:
            yield "nextn.eh_proj.weight", (8192, 4096)
            yield "nextn.enorm.weight", (4096,)
            yield "nextn.hnorm.weight", (4096,)
            yield "nextn.embed_tokens.weight", (4096, 151552)
            yield "nextn.shared_head_head.weight", (4096, 151552)
            yield "nextn.shared_head_norm.weight", (4096,)

    values = {
        **common(47, 4096, 96, 8, 131072),
        "attention.key_length": 128,
        "attention.value_length": 128,
        "rope.dimension_count": 64,
        "feed_forward_length": 10944,
        "leading_dense_block_count": 1,
        "expert_count": 128,
        "expert_used_count": 8,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 1408,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "nextn_predict_layers": 1,
    }
    return build("GLM-4.5-Air", "glm4moe", values, layer, vocabulary=151552)


def lfm2() -> Header:
    attentive = {2, 5, 8, 10, 12, 14}

    def layer(number: int) -> Shapes:
        if number in attentive:
            yield from attention(2048, 2048, 512, norm=64)
        else:
            yield "attn_norm.weight", (2048,)
            yield "shortconv.conv.weight", (3, 2048)
            yield "shortconv.in_proj.weight", (2048, 6144)
            yield "shortconv.out_proj.weight", (2048, 2048)
        yield from feed_forward(2048, 8192)

    values = {
        **common(16, 2048, 32, tuple(8 if n in attentive else 0 for n in range(16)), 128000),
        "feed_forward_length": 8192,
        "shortconv.l_cache": 3,
    }
    return build(
        "LFM2-1.2B",
        "lfm2",
        values,
        layer,
        vocabulary=65536,
        tied=True,
        mix=Tied(16),
        output_norm="token_embd_norm.weight",
    )


def cohere2() -> Header:
    def layer(_: int) -> Shapes:
        yield from attention(4096, 4096, 1024)
        yield from gated(4096, 14336)

    values = {
        **common(32, 4096, 32, 8, 132096),
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.sliding_window": 4096,
        "feed_forward_length": 14336,
        "rope.dimension_count": 128,
        "logit_scale": 0.25,
    }
    return build("c4ai-command-r7b-12-2024", "cohere2", values, layer, vocabulary=256000, tied=True, mix=Tied(32))


def falcon_h1() -> Header:
    def layer(_: int) -> Shapes:
        yield from attention(3072, 1536, 256)
        for name, shape in mamba2_mixer(3072, 3072, 256, 1, 24):
            if name != "ssm_norm.weight":
                yield name, shape
        yield "ffn_norm", (3072,)
        yield from gated(3072, 12288)

    values = {
        **common(44, 3072, 12, 2, 262144),
        "attention.key_length": 128,
        "attention.value_length": 128,
        "feed_forward_length": 12288,
        **state_space(4, 3072, 256, 24, 1),
    }
    return build("Falcon-H1-7B-Instruct", "falcon-h1", values, layer, vocabulary=130048)


def nemotron_h() -> Header:
    kinds = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"

    def layer(number: int) -> Shapes:
        if kinds[number] == "*":
            yield from attention(4096, 4096, 1024)
            return
        yield "attn_norm.weight", (4096,)
        if kinds[number] == "M":
            yield from mamba2_mixer(4096, 8192, 128, 8, 128)
        else:
            yield "ffn_up.weight", (4096, 21504)
            yield "ffn_down.weight", (21504, 4096)

    values = {
        **common(52, 4096, 32, tuple(8 if kind == "*" else 0 for kind in kinds), 8192),
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.layer_norm_epsilon": 1e-5,
        "feed_forward_length": tuple(21504 if kind == "-" else 0 for kind in kinds),
        **state_space(4, 8192, 128, 128, 8),
    }
    return build("Nemotron-H-8B-Base-8K", "nemotron_h", values, layer, vocabulary=131072)


def qwen35() -> Header:
    def layer(number: int) -> Shapes:
        if number % 4 == 3:
            yield from attention(5120, 12288, 1024, norm=256)
        else:
            yield "attn_norm.weight", (5120,)
            yield "attn_qkv.weight", (5120, 10240)
            yield "attn_gate.weight", (5120, 6144)
            yield "ssm_conv1d.weight", (4, 10240)
            yield "ssm_dt.bias", (48,)
            yield "ssm_a", (48,)
            yield "ssm_beta.weight", (5120, 48)
            yield "ssm_alpha.weight", (5120, 48)
            yield "ssm_norm.weight", (128,)
            yield "ssm_out.weight", (6144, 5120)
        yield "post_attention_norm.weight", (5120,)
        yield from gated(5120, 17408)

    def gated_query(number: int) -> Shapes:
        for name, shape in layer(number):
            yield name, (6144, 5120) if name == "attn_output.weight" else shape

    values = {
        **common(64, 5120, 24, 4, 262144),
        "attention.key_length": 256,
        "attention.value_length": 256,
        "rope.dimension_count": 64,
        "rope.dimension_sections": (11, 11, 10, 0),
        "feed_forward_length": 17408,
        **state_space(4, 6144, 128, 48, 16),
    }
    return build("Qwen3.5-27B", "qwen35", values, gated_query, vocabulary=248320)


def kimi_linear() -> Header:
    attentive = {3, 7, 11, 15, 19, 23, 26}

    def layer(number: int) -> Shapes:
        if number in attentive:
            yield "attn_norm.weight", (2304,)
            yield "attn_kv_a_norm.weight", (512,)
            yield "attn_q.weight", (2304, 32 * 192)
            yield "attn_kv_a_mqa.weight", (2304, 576)
            yield "attn_k_b.weight", (128, 512, 32)
            yield "attn_v_b.weight", (512, 128, 32)
            yield "attn_output.weight", (4096, 2304)
        else:
            yield from attention(2304, 4096, 4096)
            for letter in "qkv":
                yield f"ssm_conv1d_{letter}.weight", (4, 1, 4096)
            yield "ssm_f_a.weight", (2304, 128)
            yield "ssm_f_b.weight", (128, 4096)
            yield "ssm_beta.weight", (2304, 32)
            yield "ssm_a", (1, 32)
            yield "ssm_dt.bias", (4096,)
            yield "ssm_g_a.weight", (2304, 128)
            yield "ssm_g_b.weight", (128, 4096)
            yield "ssm_norm.weight", (128,)
        yield "ffn_norm.weight", (2304,)
        if number < 1:
            yield from gated(2304, 9216)
        else:
            yield from experts(2304, 1024, 256)
            yield from gated(2304, 1024, "_shexp")
            yield "exp_probs_b.bias", (256,)

    values = {
        **common(27, 2304, 32, tuple(1 if n in attentive else 0 for n in range(27)), 1048576),
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "ssm.conv_kernel": 4,
        "kda.head_dim": 128,
        "feed_forward_length": 9216,
        "leading_dense_block_count": 1,
        "expert_count": 256,
        "expert_used_count": 8,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 1024,
        "expert_weights_scale": 2.446,
        "expert_gating_func": 2,
    }
    return build("Kimi-Linear-48B-A3B-Instruct", "kimi-linear", values, layer, vocabulary=163840)


def rwkv7() -> Header:
    def layer(number: int) -> Shapes:
        for norm in ("attn_norm", "attn_norm_2"):
            yield f"{norm}.weight", (2560,)
            yield f"{norm}.bias", (2560,)
        for letter, rank in (("w", 96), ("a", 96), ("v", 64 if number else 96)):
            yield f"time_mix_{letter}0.weight", (2560,)
            yield f"time_mix_{letter}1.weight", (2560, rank)
            yield f"time_mix_{letter}2.weight", (rank, 2560)
        yield "time_mix_g1.weight", (2560, 320)
        yield "time_mix_g2.weight", (320, 2560)
        yield "time_mix_lerp_fused.weight", (2560, 1, 1, 6)
        for name in ("k_k", "k_a", "r_k"):
            yield f"time_mix_{name}.weight", (2560,)
        for name in ("key", "value", "receptance", "output"):
            yield f"time_mix_{name}.weight", (2560, 2560)
        yield "time_mix_ln.weight", (2560,)
        yield "time_mix_ln.bias", (2560,)
        yield "channel_mix_lerp_k.weight", (2560, 1, 1)
        yield "channel_mix_key.weight", (2560, 10240)
        yield "channel_mix_value.weight", (10240, 2560)

    values = {
        "block_count": 32,
        "context_length": 1048576,
        "embedding_length": 2560,
        "feed_forward_length": 10240,
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": 1e-5,
        "wkv.head_size": 64,
        "attention.decay_lora_rank": 96,
        "attention.iclr_lora_rank": 96,
        "attention.value_residual_mix_lora_rank": 64,
        "attention.gate_lora_rank": 320,
    }
    extra = [(name, (2560,)) for name in ("output_norm.bias", "token_embd_norm.weight", "token_embd_norm.bias")]
    mix = Quantized(32, "F16", "F16")
    return build("RWKV7-Goose-World3-2.9B", "rwkv7", values, layer, vocabulary=65536, extra=extra, mix=mix)


def gemma4() -> Header:
    full = {n for n in range(42) if n % 6 == 5}

    def layer(number: int) -> Shapes:
        head = 512 if number in full else 256
        for name, shape in attention(2560, 8 * head, 2 * head, norm=head):
            reused = name.startswith(("attn_k", "attn_v")) and number >= 24
            if not reused:
                yield name, shape
        yield from feed_forward(2560, 10240)
        yield "post_attention_norm.weight", (2560,)
        yield "post_ffw_norm.weight", (2560,)
        yield "inp_gate.weight", (2560, 256)
        yield "proj.weight", (256, 2560)
        yield "post_norm.weight", (2560,)

    values = {
        **common(42, 2560, 8, 2, 131072),
        "attention.key_length": 512,
        "attention.value_length": 512,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "attention.sliding_window": 512,
        "attention.sliding_window_pattern": tuple(n not in full for n in range(42)),
        "attention.shared_kv_layers": 18,
        "embedding_length_per_layer_input": 256,
        "feed_forward_length": 10240,
    }
    extra = [
        ("per_layer_token_embd.weight", (256 * 42, 262144)),
        ("per_layer_model_proj.weight", (2560, 256 * 42)),
        ("per_layer_proj_norm.weight", (256,)),
        ("rope_freqs.weight", (256,)),
    ]
    return build("gemma-4-E4B-it", "gemma4", values, layer, vocabulary=262144, tied=True, extra=extra, mix=TiedRope(42))


class TiedRope(Tied):
    def __call__(self, name: str, shape: Sequence[int]) -> str:
        return "F32" if name == "rope_freqs.weight" else super().__call__(name, shape)


def bert() -> Header:
    def layer(_: int) -> Shapes:
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{part}.weight", (1024, 1024)
            yield f"{part}.bias", (1024,)
        for part in ("attn_output_norm", "layer_output_norm"):
            yield f"{part}.weight", (1024,)
            yield f"{part}.bias", (1024,)
        yield "ffn_up.weight", (1024, 4096)
        yield "ffn_up.bias", (4096,)
        yield "ffn_down.weight", (4096, 1024)
        yield "ffn_down.bias", (1024,)

    values = {
        **common(24, 1024, 16, 16, 512),
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "pooling_type": 2,
        "tokenizer.ggml.token_type_count": 2,
        "feed_forward_length": 4096,
    }
    header = build(
        "bge-large-en-v1.5",
        "bert",
        values,
        layer,
        vocabulary=30522,
        tied=True,
        extra=[("position_embd.weight", (1024, 512)), ("token_types.weight", (1024, 2))],
        mix=Quantized(24, "F16", "F16"),
        output_norm="token_embd_norm.weight",
    )
    bias = ("token_embd_norm.bias", (1024,), "F32")
    return Header(header.name, header.architecture, header.values, (*header.tensors, bias), header.vocabulary)


def small_qwen3() -> Header:
    """The draft model for the others of its family."""
    return dense(
        "Qwen3-0.6B",
        "qwen3",
        layers=28,
        width=1024,
        heads=16,
        kv_heads=8,
        head=128,
        inner=3072,
        vocabulary=151936,
        trained=40960,
        tied=True,
        norm=True,
    )


ALL: tuple[Callable[[], Header], ...] = (
    llama,
    small_llama,
    mixtral,
    mistral,
    qwen2,
    qwen3,
    qwen3moe,
    gemma2,
    gemma3,
    gemma3n,
    phi3,
    deepseek2,
    granite_hybrid,
    jamba,
    mamba,
    mamba2,
    gpt_oss,
    llama4,
    qwen3next,
    glm4moe,
    lfm2,
    cohere2,
    falcon_h1,
    nemotron_h,
    qwen35,
    kimi_linear,
    rwkv7,
    gemma4,
    bert,
    small_qwen3,
)

HEADERS: Mapping[str, Header] = {header.name: header for header in (make() for make in ALL)}


def encoder(
    name: str, kind: str, *, side: int, layers: int, width: int, inner: int, heads: int, output: int, parts: Shapes
) -> Header:
    """A vision encoder, in a file of its own beside the model that looks through it."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("v.patch_embd.weight", (14, 14, 3, width))]
    for number in range(layers):
        for norm in ("ln1", "ln2"):
            shapes += [(f"v.blk.{number}.{norm}.{part}", (width,)) for part in ("weight", "bias")]
        for part, row, rows in (
            *((f"attn_{letter}", width, width) for letter in ("q", "k", "v", "out")),
            ("ffn_up", width, inner),
            ("ffn_down", inner, width),
        ):
            shapes += [(f"v.blk.{number}.{part}.weight", (row, rows)), (f"v.blk.{number}.{part}.bias", (rows,))]
    shapes += parts
    values: dict[str, Value | Sequence[float] | str] = {
        "has_vision_encoder": True,
        "projector_type": kind,
        "use_gelu": True,
        "vision.image_size": side,
        "vision.patch_size": 14,
        "vision.embedding_length": width,
        "vision.feed_forward_length": inner,
        "vision.block_count": layers,
        "vision.attention.head_count": heads,
        "vision.attention.layer_norm_epsilon": 1e-6,
        "vision.projection_dim": output,
        "vision.image_mean": (0.5, 0.5, 0.5),
        "vision.image_std": (0.5, 0.5, 0.5),
    }
    whole = ("embd", "norm", "ln")
    tensors = tuple(
        (
            tensor,
            shape,
            "F32"
            if len(shape) == 1 or any(f"{part}." in tensor and "patch" not in tensor for part in whole)
            else "F16",
        )
        for tensor, shape in shapes
    )
    return Header(name, "clip", values, tensors, 0)


def gemma3_encoder() -> Header:
    def parts() -> Shapes:
        yield "v.patch_embd.bias", (1152,)
        yield "v.position_embd.weight", (1152, 4096)
        yield "v.post_ln.weight", (1152,)
        yield "v.post_ln.bias", (1152,)
        yield "mm.input_projection.weight", (3840, 1152)
        yield "mm.soft_emb_norm.weight", (1152,)

    return encoder(
        "mmproj-gemma-3-12b-it",
        "gemma3",
        side=896,
        layers=27,
        width=1152,
        inner=4304,
        heads=16,
        output=3840,
        parts=parts(),
    )


def qwen2vl_encoder() -> Header:
    def parts() -> Shapes:
        yield "v.patch_embd.weight.1", (14, 14, 3, 1280)
        yield "v.post_ln.weight", (1280,)
        yield "v.post_ln.bias", (1280,)
        yield "mm.0.weight", (5120, 5120)
        yield "mm.0.bias", (5120,)
        yield "mm.2.weight", (5120, 3584)
        yield "mm.2.bias", (3584,)

    return encoder(
        "mmproj-Qwen2-VL-7B-Instruct",
        "qwen2vl_merger",
        side=560,
        layers=32,
        width=1280,
        inner=5120,
        heads=16,
        output=3584,
        parts=parts(),
    )


ENCODERS: Mapping[str, tuple[Header, str]] = {
    "gemma3": (gemma3_encoder(), "gemma-3-12b-it"),
    "qwen2vl": (qwen2vl_encoder(), "Qwen2.5-7B-Instruct"),
}
"""Each with the name of a model that it fits."""
