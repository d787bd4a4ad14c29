"""What a model takes, from the header of its file: llama.cpp's rules with values computed by hand."""

import math
import re
from collections.abc import Mapping
from functools import partial

import pytest
from catalog import gguf_writer
from counted import calls_of

from core.model_headers import ENCODERS, HEADERS, Header, size
from gpud.core.errors import GpudError
from gpud.core.estimate import (
    Shape,
    ShapeInvalid,
    UnknownArchitecture,
    estimate,
)
from gpud.core.estimate.cache import TYPES
from gpud.core.estimate.shape import Layer, Work
from gpud.core.estimate.weights import padded
from gpud.core.modelfile import ModelFile, Tensor, Value
from gpud.core.plan import ALL_LAYERS, Plan
from gpud.core.quote import Estimate, Part, Source
from gpud.core.record import replace

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

LLAMA = HEADERS["Llama-3.1-8B-Instruct"]
SMALL = HEADERS["Llama-3.2-1B-Instruct"]
MIXTURE = HEADERS["Qwen3-30B-A3B"]
DRAFT = HEADERS["Qwen3-0.6B"]

ONE_GPU = Plan(context=4096, parallel=1, gpus=1)
TWO_GPUS = replace(ONE_GPU, gpus=2)


def weights(header: Header, *patterns: str) -> int:
    """The bytes of all tensors whose names match, as the file has them."""
    return sum(
        size(shape, kind)
        for name, shape, kind in header.tensors
        if not patterns or any(re.match(one, name) for one in patterns)
    )


def host(made: Estimate) -> Part:
    return made.parts[-1]


def gpu(made: Estimate, number: int = 0) -> Part:
    return made.parts[number]


def layers(numbers: range) -> str:
    return rf"blk\.({'|'.join(map(str, numbers))})\."


def test_parts_name_gpus_first_and_the_host_last() -> None:
    """One part for each GPU that the engine sees, in its order, and one for the machine's own memory."""
    made = estimate(LLAMA.file(), TWO_GPUS)

    assert [(part.device, part.gpu) for part in made.parts] == [("CUDA0", 0), ("CUDA1", 1), ("Host", None)]
    assert (made.architecture, made.source, made.context, made.layers) == ("llama", Source.FORMULA, 4096, 33)


def test_without_a_gpu_everything_is_on_the_host() -> None:
    """The machine's own memory is the only part; no layer counts as offloaded."""
    made = estimate(LLAMA.file(), Plan(context=4096, layers=20))

    assert [part.device for part in made.parts] == ["Host"]
    assert host(made).weights_bytes == weights(LLAMA)
    assert made.layers == 0


def test_the_embeddings_stay_on_the_host() -> None:
    """With all layers on a GPU, what the tokens are looked up in is not; the file is larger than what the GPU needs."""
    made = estimate(LLAMA.file(), ONE_GPU)

    assert host(made).weights_bytes == weights(LLAMA, "token_embd")
    assert gpu(made).weights_bytes == weights(LLAMA) - weights(LLAMA, "token_embd")


def test_embeddings_that_are_the_output_too_are_in_memory_twice() -> None:
    """A file without an output tensor takes its whole size on the GPU, and the embeddings again on the host."""
    made = estimate(SMALL.file(), ONE_GPU)

    assert gpu(made).weights_bytes == weights(SMALL)
    assert host(made).weights_bytes == weights(SMALL, "token_embd")


def test_layers_count_from_the_end_with_the_output_first() -> None:
    """20 of 33 layers: the output and the last 19 repeating ones, with the rope factors that all of them need."""
    made = estimate(LLAMA.file(), replace(ONE_GPU, layers=20))

    on_gpu = weights(LLAMA, layers(range(13, 32)), "output")
    rope = weights(LLAMA, "rope_freqs")
    assert gpu(made).weights_bytes == on_gpu + rope
    assert host(made).weights_bytes == weights(LLAMA) - on_gpu
    assert made.layers == 20


def test_one_layer_is_the_output_alone() -> None:
    """The first layer that goes to a GPU repeats nothing and has no cache."""
    made = estimate(LLAMA.file(), replace(ONE_GPU, layers=1))

    assert gpu(made).weights_bytes == weights(LLAMA, "output")
    assert gpu(made).kv_bytes == 0


def test_the_cache_is_where_its_layer_is() -> None:
    """4,096 tokens of 1,024 keys and as many values of two bytes are 16 MiB a layer."""
    made = estimate(LLAMA.file(), replace(ONE_GPU, layers=20))

    assert gpu(made).kv_bytes == 19 * 16 * MIB
    assert host(made).kv_bytes == 13 * 16 * MIB


def test_the_cache_stays_on_the_host_when_told_so() -> None:
    """``--no-kv-offload`` keeps all of it there, wherever the layers are."""
    made = estimate(LLAMA.file(), replace(ONE_GPU, kv_on_gpu=False))

    assert gpu(made).kv_bytes == 0
    assert host(made).kv_bytes == 512 * MIB


@pytest.mark.parametrize(
    ("split", "first"),
    [
        # 33 layers: a layer is on the first GPU whose cumulative share is above its own place.
        ((), 17),
        ((1.0, 1.0), 17),
        ((3.0, 1.0), 25),
        ((24.0, 8.0), 25),
        ((1.0, 0.0), 33),
        ((0.0, 1.0), 0),
        ((1.0,), 33),
        ((2.0, 2.0, 9.0), 17),
    ],
)
def test_gpus_take_consecutive_layers_by_their_shares(split: tuple[float, ...], first: int) -> None:
    """``tensor_split`` in any unit; without one, equal parts."""
    made = estimate(LLAMA.file(), replace(TWO_GPUS, tensor_split=split))

    repeating = min(first, 32)
    assert gpu(made, 0).kv_bytes == repeating * 16 * MIB
    assert gpu(made, 1).kv_bytes == (32 - repeating) * 16 * MIB
    on_first = weights(LLAMA, layers(range(first))) if first else 0
    rope = weights(LLAMA, "rope_freqs")
    expected = on_first + (rope if first else 0) + (weights(LLAMA, "output") if first == 33 else 0)
    assert gpu(made, 0).weights_bytes == expected


def test_three_equal_shares_are_compared_in_single_precision() -> None:
    """Where a layer lies exactly on the border of two shares, it goes to the second, as llama.cpp's floats have it."""
    made = estimate(LLAMA.file(), replace(ONE_GPU, gpus=3, tensor_split=(1, 1, 1)))

    assert [part.kv_bytes // (16 * MIB) for part in made.parts] == [11, 11, 10, 0]


def test_a_partial_offload_is_split_in_the_same_way() -> None:
    """Shares are of what is offloaded: 20 of 33 layers in equal parts are ten each, the output among the last."""
    made = estimate(LLAMA.file(), replace(TWO_GPUS, layers=20))

    assert gpu(made, 0).kv_bytes == 10 * 16 * MIB
    assert gpu(made, 1).kv_bytes == 9 * 16 * MIB
    assert host(made).kv_bytes == 13 * 16 * MIB


def test_split_mode_none_uses_the_main_gpu_alone() -> None:
    """All layers go to the one that ``main_gpu`` names."""
    made = estimate(LLAMA.file(), replace(TWO_GPUS, split_mode="none", main_gpu=1))

    assert gpu(made, 0).total_bytes == 0
    assert gpu(made, 1).kv_bytes == 512 * MIB


def test_split_mode_row_shares_matrices_and_keeps_caches_whole() -> None:
    """Each GPU has its share of every matrix; keys and values follow their layer."""
    made = estimate(LLAMA.file(), replace(TWO_GPUS, split_mode="row", tensor_split=(3.0, 1.0)))

    total = weights(LLAMA) - weights(LLAMA, "token_embd")
    assert gpu(made, 0).weights_bytes == pytest.approx(total * 3 / 4, rel=0.001)
    assert gpu(made, 0).kv_bytes == 25 * 16 * MIB


@pytest.mark.parametrize("mode", ["row", "tensor", "none"])
def test_one_gpu_has_all_of_it_however_it_is_split(mode: str) -> None:
    """There is nobody to share with, whatever its share is said to be."""
    for header in (LLAMA, MIXTURE, HEADERS["granite-4.0-h-tiny"]):
        plan = replace(ONE_GPU, layers=12, tensor_split=(3.0,))
        assert estimate(header.file(), replace(plan, split_mode=mode)) == estimate(header.file(), plan)


def test_several_gpus_in_a_row_keep_copies_of_the_inputs() -> None:
    """Pipelining needs more of its buffers; it ends as soon as anything is left to the CPU."""
    whole = estimate(LLAMA.file(), TWO_GPUS)
    alone = estimate(LLAMA.file(), ONE_GPU)

    mask, embedded = 512 * 4096 * 2, 512 * 4096 * 4
    assert gpu(whole).compute_bytes == gpu(alone).compute_bytes + 3 * (mask + embedded)
    # What the first hands to the second is as large as embedded tokens, and is there as often.
    assert gpu(whole, 1).compute_bytes == gpu(whole).compute_bytes + 4 * embedded
    assert host(whole).compute_bytes == host(alone).compute_bytes + 3 * (mask + embedded)
    assert gpu(estimate(LLAMA.file(), replace(TWO_GPUS, kv_on_gpu=False))).compute_bytes == gpu(alone).compute_bytes


def test_all_experts_count() -> None:
    """However few are active at a time, all of them are in memory: a 4-bit 30B mixture takes 15.5 to 19 GB."""
    made = estimate(MIXTURE.file(), ONE_GPU)

    assert 15.5e9 <= gpu(made).total_bytes <= 19e9
    assert 15.5 * GIB <= gpu(made).total_bytes <= 19 * GIB


def test_experts_of_the_first_layers_stay_on_the_host() -> None:
    """``--n-cpu-moe 10`` moves the experts of ten layers, nothing else of them."""
    made = estimate(MIXTURE.file(), replace(ONE_GPU, cpu_moe=10))

    ten = weights(MIXTURE, r"blk\.\d\.ffn_(up|down|gate)_exps")
    assert ten > 3 * GIB
    assert host(made).weights_bytes == weights(MIXTURE, "token_embd") + ten
    whole = estimate(MIXTURE.file(), ONE_GPU)
    # Rows of 768 are padded on a GPU: some hundred bytes for each of the ten that have them.
    assert ten < gpu(whole).weights_bytes - gpu(made).weights_bytes < ten + 10 * 512
    assert gpu(made).kv_bytes == gpu(whole).kv_bytes


def test_overrides_pin_tensors_by_pattern() -> None:
    """The first pattern that is found in a name decides, whatever layer it is in."""
    overrides = ((r"blk\.0\.ffn_down", "CUDA1"), (r"\.ffn_down", "CPU"), (r"blk\.1\.", "CUDA0"))
    made = estimate(LLAMA.file(), replace(TWO_GPUS, tensor_split=(1.0, 0.0), override_tensors=overrides))

    downs = weights(LLAMA, r".*ffn_down")
    first = weights(LLAMA, r"blk\.0\.ffn_down")
    assert host(made).weights_bytes == weights(LLAMA, "token_embd") + downs - first
    assert gpu(made, 1).weights_bytes == first


def test_a_pattern_that_is_none_is_named() -> None:
    """The sentence has the pattern and what is wrong with it."""
    with pytest.raises(GpudError, match=re.escape('by the pattern "blk.(": missing )')):
        estimate(LLAMA.file(), replace(ONE_GPU, override_tensors=(("blk.(", "CPU"),)))


def test_what_stays_behind_is_copied_to_the_gpu_when_there_is_much_to_do() -> None:
    """The largest matrix on the host counts in the GPU's buffers. The output is one only for who embeds: it is computed
    for all tokens then."""
    none = estimate(LLAMA.file(), replace(ONE_GPU, layers=0))
    every = estimate(LLAMA.file(), ONE_GPU)
    embeds, whole = (estimate(LLAMA.file(), replace(ONE_GPU, layers=n, embeddings=True)) for n in (0, 33))

    assert gpu(none).weights_bytes == gpu(none).kv_bytes == 0
    assert gpu(none).compute_bytes == gpu(every).compute_bytes + weights(LLAMA, r"blk\.31\.ffn_down")
    assert gpu(embeds).compute_bytes == gpu(whole).compute_bytes + weights(LLAMA, "output.weight")


def test_embeddings_that_are_the_output_are_not_rearranged_beside_a_gpu() -> None:
    """They are on the host once where there is a GPU, twice where the CPU multiplies them its own way."""
    beside = estimate(SMALL.file(), replace(ONE_GPU, layers=0))
    alone = estimate(SMALL.file(), replace(ONE_GPU, gpus=0))

    assert host(beside).weights_bytes == weights(SMALL)
    assert host(alone).weights_bytes == weights(SMALL) + weights(SMALL, "token_embd")


def test_last_rows_are_padded_on_a_gpu() -> None:
    """Rows of 2,880 quantized elements are filled up to 3,072: 192 of them once a tensor, then up to 128 bytes."""
    tensor = Tensor("blk.0.ffn_down_exps.weight", (2880, 2880, 32), "MXFP4", 2880 * 2880 * 17)
    file = ModelFile(
        "llama",
        {"llama.block_count": 1, "llama.embedding_length": 2880, "llama.context_length": 4096},
        (tensor,),
    )

    assert gpu(estimate(file, ONE_GPU)).weights_bytes == 2880 * 2880 * 17 + 102 + 26
    assert host(estimate(file, replace(ONE_GPU, gpus=0))).weights_bytes == 2880 * 2880 * 17


PLACED = {"llama.block_count": 2, "llama.embedding_length": 8}
OUTPUT = (Tensor("output.weight", (8, 16), "F32", 512), Tensor("output_norm.weight", (8,), "F32", 32))


def on_gpu_and_host(layers: int, *tensors: Tensor, output: tuple[Tensor, ...] = OUTPUT) -> tuple[int, int]:
    """What these add to the weights on a GPU and on the host, with so many of two layers and the output there."""
    plan = replace(ONE_GPU, layers=layers)
    made = estimate(ModelFile("llama", PLACED, (*tensors, *output)), plan)
    without = estimate(ModelFile("llama", PLACED, output), plan)
    return tuple(one.weights_bytes - other.weights_bytes for one, other in zip(made.parts, without.parts, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("token_embd.weight", None),
        ("position_embd.weight", None),
        ("token_types.weight", None),
        ("per_layer_token_embd.weight", None),
        ("token_embd_norm.weight", 3),
        ("per_layer_model_proj.weight", 3),
        ("per_layer_proj_norm.weight", 3),
        ("blk.0.attn_q.weight", 3),
        ("blk.0.ffn_up_exps.weight", 3),
        ("blk.1.attn_q.weight", 2),
        ("output.bias", 1),
        ("output_extra.weight", 1),
    ],
)
def test_a_tensor_goes_with_the_layer_that_it_belongs_to(name: str, least: int | None) -> None:
    """What belongs to the input stays; what comes between it and the layers goes with the first of them, everything
    else with the output, which goes first."""
    tensor = Tensor(name, (8, 32), "F32", 1024)
    for layers in range(4):
        moved = least is not None and layers >= least
        assert on_gpu_and_host(layers, tensor) == ((1024, 0) if moved else (0, 1024))


@pytest.mark.parametrize("name", ["blk.2.attn_q.weight", "blk.1.nextn.eh_proj.weight"])
def test_a_tensor_of_a_layer_that_is_not_loaded_takes_nothing(name: str) -> None:
    """One beyond the last, or what predicts ahead."""
    for layers in range(4):
        assert on_gpu_and_host(layers, Tensor(name, (8, 32), "F32", 1024)) == (0, 0)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"])
def test_what_all_layers_need_is_wherever_a_layer_is(name: str) -> None:
    """The output needs none of it."""
    tensor = Tensor(name, (256,), "F32", 1024)
    placed = [on_gpu_and_host(layers, tensor) for layers in range(4)]
    assert placed == [(0, 1024), (0, 1024), (1024, 1024), (1024, 0)]


def test_where_the_output_has_no_norm_that_of_the_embeddings_is_its() -> None:
    """As some files call it."""
    norm = Tensor("token_embd_norm.weight", (8, 32), "F32", 1024)
    assert on_gpu_and_host(1, norm, output=OUTPUT[:1]) == (1024, 0)


@pytest.mark.parametrize(
    ("buffer", "gpu"),
    [
        *((f"{kind}1", 1) for kind in ("CUDA", "ROCm", "Vulkan", "SYCL", "HIP")),
        ("CUDA0", 0),
        ("CUDA2", None),
        ("CUDA", None),
        ("CUDA_Host", None),
        ("CPU", None),
        ("RPC1", None),
    ],
)
def test_an_override_names_a_gpu_that_the_engine_sees_or_the_host(buffer: str, gpu: int | None) -> None:
    """By the name of its kind with its number; anything else is the machine's own memory."""
    plan = replace(
        TWO_GPUS, tensor_split=(1.0, 0.0), override_tensors=((r"blk\.0\.ffn_down", buffer), ("ffn", "CUDA0"))
    )
    moved = weights(LLAMA, r"blk\.0\.ffn_down")
    whole = weights(LLAMA) - weights(LLAMA, "token_embd")
    expected = [whole - moved, 0, weights(LLAMA, "token_embd")]
    expected[2 if gpu is None else gpu] += moved
    assert [part.weights_bytes for part in estimate(LLAMA.file(), plan).parts] == expected


def test_an_override_that_is_no_pattern_is_named() -> None:
    """With what is wrong with it."""
    with pytest.raises(GpudError, match=r'cannot place tensors by the pattern "ffn\("') as caught:
        estimate(LLAMA.file(), replace(ONE_GPU, override_tensors=(("ffn(", "CPU"),)))
    assert caught.value.code == "invalid-option"


def test_fewer_than_no_layers_are_none() -> None:
    """As llama.cpp takes a negative number."""
    none = estimate(LLAMA.file(), replace(ONE_GPU, layers=0))
    assert estimate(LLAMA.file(), replace(ONE_GPU, layers=-3)) == none
    assert none.layers == 0


@pytest.mark.parametrize("kind", gguf_writer.KINDS)
def test_only_quantized_rows_are_filled_up_on_a_gpu(kind: str) -> None:
    """To 512 elements: of 256 there are as many again. What is not quantized may be read to its end."""
    _, block, block_bytes = gguf_writer.KINDS[kind]
    rows = 256 // block * block_bytes * 64
    filled = block > 1
    assert on_gpu_and_host(2, Tensor("blk.1.attn_q.weight", (256, 64), kind, rows)) == (
        padded(rows + filled * rows // 64, 128),
        0,
    )


def test_layers_for_drafts_are_not_loaded() -> None:
    """The last layer of this file is for predicting ahead: no weights, no cache."""
    header = HEADERS["GLM-4.5-Air"]
    made = estimate(header.file(), Plan(context=4096))

    assert host(made).weights_bytes == weights(header) - weights(header, r"blk\.46\.")
    assert host(made).kv_bytes == 46 * 16 * MIB


@pytest.mark.parametrize(
    ("plan", "cells"),
    [
        (Plan(context=16384), 16384),
        (Plan(context=16384, parallel=2), 16384),
        (Plan(context=1000, parallel=1), 1024),
        (Plan(context=1000, parallel=3), 3 * 512),
        (Plan(context=100, parallel=4), 4 * 256),
        (Plan(context=1000, parallel=3, unified=True), 1024),
        (Plan(context=0), 131072),
    ],
)
def test_contexts_come_in_multiples_of_256_for_each_slot(plan: Plan, cells: int) -> None:
    """What the engine says its context is; without a word, what the model was trained with."""
    made = estimate(LLAMA.file(), plan)

    assert made.context == cells
    assert host(made).kv_bytes == cells * 128 * KIB


def test_what_sees_all_tokens_at_once_computes_all_that_it_has_room_for() -> None:
    """100 tokens have room in 256 cells; who sees only what came before computes no more than were asked for."""
    little, whole = (Plan(context=context, parallel=1) for context in (100, 256))
    both_ways = {**LLAMA.values, "attention.causal": False}
    blind, seeing = LLAMA.file(), Header("", "llama", both_ways, LLAMA.tensors, LLAMA.vocabulary).file()
    assert estimate(seeing, little) == estimate(seeing, whole) == estimate(blind, whole)
    assert host(estimate(blind, little)).compute_bytes < host(estimate(blind, whole)).compute_bytes


@pytest.mark.parametrize(
    ("keys", "values", "bytes_per_token"),
    [("f16", "f16", 4096), ("q8_0", "q8_0", 2176), ("q4_0", "q4_0", 1152), ("q8_0", "f16", 3136), ("f32", "f16", 6144)],
)
def test_quantized_caches(keys: str, values: str, bytes_per_token: int) -> None:
    """Types mix; blocks of 32 elements take 34 bytes in q8_0, 18 in q4_0."""
    made = estimate(LLAMA.file(), Plan(context=4096, type_k=keys, type_v=values, flash_attention="on"))

    assert host(made).kv_bytes == 4096 * 32 * bytes_per_token


def test_what_does_not_fill_a_block_takes_a_whole_one() -> None:
    """99 elements are four blocks of 32, in q8_0 of 34 bytes each."""
    shape = shape_of("llama", ONE)
    made = estimate(shape, Plan(context=256, parallel=1, type_k="q8_0", type_v="q8_0"))
    assert host(made).kv_bytes == 2 * 4 * 34 * 256


@pytest.mark.parametrize("name", TYPES)
def test_a_type_takes_in_a_cache_what_it_takes_in_a_file(name: str) -> None:
    """Blocks of as many elements and bytes."""
    assert TYPES[name] == gguf_writer.KINDS[name.upper()][1:]


def test_a_cache_type_that_does_not_exist_is_named() -> None:
    """The error lists those that do."""
    with pytest.raises(GpudError, match='cache of type "q3_0": no such type') as caught:
        estimate(LLAMA.file(), Plan(type_k="q3_0"))
    assert "q8_0" in caught.value.hint


GEMMA_ROW = 8 * 256 * 2 * 2
"""Keys and values of one token in one layer."""


@pytest.mark.parametrize(
    ("plan", "windowed"),
    [
        # A window of 1,024, of each of the four slots of a shared cache, and what is computed at once; full: 16,384.
        (Plan(context=16384), 1024 * 4 + 512),
        (Plan(context=16384, parallel=1), 1024 + 512),
        (Plan(context=16384, parallel=1, micro_batch=600), 1792),
        (Plan(context=16384, parallel=2), 2 * (1024 + 512)),
        (Plan(context=16384, parallel=2, unified=True), 2 * 1024 + 512),
        (Plan(context=16384, full_swa=True), 16384),
    ],
)
def test_windows_bound_the_cache_of_their_layers(plan: Plan, windowed: int) -> None:
    """Five of six layers keep only what their window may see, in multiples of 256 cells."""
    made = estimate(HEADERS["gemma-3-12b-it"].file(), plan)

    assert host(made).kv_bytes == (8 * 16384 + 40 * windowed) * GEMMA_ROW


def test_keys_that_values_are_computed_from_have_no_values_beside_them() -> None:
    """27 layers of 512 + 64 elements for each token."""
    made = estimate(HEADERS["DeepSeek-V2-Lite-Chat"].file(), Plan(context=4096))

    assert host(made).kv_bytes == 4096 * 27 * 576 * 2


def test_layers_that_reuse_keys_have_none() -> None:
    """Of 35 layers 20 have a cache: four that see everything, 16 with a window of 512."""
    made = estimate(HEADERS["gemma-3n-E4B-it"].file(), Plan(context=16384, parallel=1))

    assert host(made).kv_bytes == (4 * 16384 + 16 * 1024) * 2 * 256 * 2 * 2


def test_states_are_kept_for_each_slot_whatever_the_context() -> None:
    """36 layers with a state of 128 × 3,072 and three rows of convolution, in four bytes; four with keys and values."""
    file = HEADERS["granite-4.0-h-tiny"].file()
    one = host(estimate(file, Plan(context=4096, parallel=1)))
    four = host(estimate(file, Plan(context=16384)))

    state = 36 * 4 * (128 * 3072 + 3 * (3072 + 2 * 128))
    assert (one.state_bytes, four.state_bytes) == (state, 4 * state)
    assert one.kv_bytes == 4 * 4096 * 2 * 512 * 2


def test_a_model_of_states_alone_does_not_grow_with_its_context() -> None:
    """No keys, no values; a long context is free."""
    file = HEADERS["falcon-mamba-7b"].file()
    small, large = (estimate(file, Plan(context=context, parallel=1)) for context in (4096, 1 << 20))

    assert host(small).kv_bytes == 0
    assert small.total_bytes == large.total_bytes
    assert host(small).state_bytes == 64 * 4 * (8192 * 16 + 3 * 8192)


def test_without_flash_attention_scores_take_memory() -> None:
    """32 heads × 4,096 cells × 512 tokens in four bytes are 256 MiB."""
    plain = host(estimate(LLAMA.file(), Plan(context=4096, parallel=1, flash_attention="off")))

    assert plain.compute_bytes > 256 * MIB


def test_without_flash_attention_all_layers_keep_as_many_values_as_the_widest() -> None:
    """The values of layers of different widths lie transposed then, and all are padded."""
    file = HEADERS["gemma-4-E4B-it"].file()
    padded = host(estimate(file, Plan(context=4096, parallel=1, flash_attention="off")))
    usual = host(estimate(file, Plan(context=4096, parallel=1)))

    # 20 layers with a window of 512 have 2 × 256 values each instead of 2 × 512.
    assert padded.kv_bytes - usual.kv_bytes == 20 * 1024 * 512 * 2


def test_a_draft_model_is_added_with_as_much_context() -> None:
    """It has its own cache, of the context that the model has, on the GPU that it is on."""
    alone = estimate(HEADERS["Qwen3-8B"].file(), replace(ONE_GPU, type_k="q8_0"))
    both = estimate(HEADERS["Qwen3-8B"].file(), replace(ONE_GPU, type_k="q8_0"), draft=DRAFT.file())

    assert gpu(both).weights_bytes - gpu(alone).weights_bytes == weights(DRAFT)
    assert gpu(both).kv_bytes - gpu(alone).kv_bytes == 4096 * 28 * 2 * 1024 * 2
    assert both.architecture == "qwen3"


def test_a_draft_model_keeps_what_its_windows_leave_out_if_the_model_does() -> None:
    """``--swa-full`` is said once for both; and whatever its own plan says, it computes no embeddings."""
    draft = HEADERS["gemma-3-12b-it"].file()
    plan = replace(ONE_GPU, context=16384)
    windowed, full = (estimate(LLAMA.file(), replace(plan, full_swa=swa), draft=draft) for swa in (False, True))
    assert gpu(full).kv_bytes - gpu(windowed).kv_bytes == 40 * (16384 - 1024 - 512) * GEMMA_ROW
    own = replace(plan, draft=Plan(embeddings=True, full_swa=True))
    assert estimate(LLAMA.file(), own, draft=draft) == estimate(LLAMA.file(), replace(plan, draft=Plan()), draft=draft)


def test_a_draft_model_may_be_placed_on_its_own() -> None:
    """Its plan says how many of its layers go to the GPU and of what type its cache is."""
    own = Plan(layers=0, type_k="q8_0", type_v="q8_0")
    both = estimate(HEADERS["Qwen3-8B"].file(), replace(ONE_GPU, draft=own), draft=DRAFT.file())
    alone = estimate(HEADERS["Qwen3-8B"].file(), ONE_GPU)

    assert gpu(both).weights_bytes == gpu(alone).weights_bytes
    assert host(both).kv_bytes == 4096 * 28 * 2 * 1088


def test_a_projector_is_on_one_gpu_as_a_whole() -> None:
    """All of its tensors, and buffers for a picture of 64 × 64 patches: 4,304 and 3 × 1,152 floats for each."""
    encoder = ENCODERS["gemma3"][0]
    plan = replace(TWO_GPUS, layers=10)
    made = estimate(LLAMA.file(), plan, mmproj=encoder.file())
    without = estimate(LLAMA.file(), plan)

    assert gpu(made).weights_bytes - gpu(without).weights_bytes == pytest.approx(weights(encoder), abs=128 * 500)
    assert gpu(made).compute_bytes - gpu(without).compute_bytes == 4096 * (4304 + 3 * 1152) * 4
    assert made.parts[1:] == without.parts[1:]


def test_adapters_are_where_the_weights_are() -> None:
    """They count to the byte, in proportion."""
    without = estimate(LLAMA.file(), replace(ONE_GPU, layers=20))
    made = estimate(LLAMA.file(), replace(ONE_GPU, layers=20), adapter_bytes=100 * MIB)

    assert made.total_bytes - without.total_bytes == 100 * MIB
    share = gpu(without).weights_bytes / (gpu(without).weights_bytes + host(without).weights_bytes)
    assert gpu(made).weights_bytes - gpu(without).weights_bytes == pytest.approx(100 * MIB * share, rel=0.001)


def test_an_unknown_architecture_is_said_so() -> None:
    """Nothing is guessed: the sentence says what is not known and who knows."""
    file = ModelFile("deepseek4", {"deepseek4.block_count": 61}, ())

    with pytest.raises(UnknownArchitecture) as caught:
        estimate(file, Plan())
    assert caught.value.code == "unknown-architecture"
    assert '"deepseek4"' in caught.value.message
    assert "dry run" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "it has 0 layers"),
        ({"block_count": 10**9}, "it has 1000000000 layers"),
        ({"block_count": 513}, "it has 513 layers, 1 to 512 are possible"),
        ({"block_count": 2, "attention.head_count": (8,)}, "attention.head_count has 1 entry for 2 layers"),
        ({"block_count": 2, "attention.head_count": (8, -8)}, "attention.head_count has -8 among its entries"),
        (
            {"block_count": 2, "attention.head_count": (8, 2**32)},
            "attention.head_count has 4294967296 among its entries, numbers from 0 to 4294967295 are needed",
        ),
        ({"block_count": 2, "embedding_length": -1}, "embedding_length is -1"),
        (
            {"block_count": 2, "embedding_length": 2**32},
            "embedding_length is 4294967296, a number from 0 to 4294967295 is needed",
        ),
        ({"block_count": 2, "context_length": "long"}, "context_length is 'long'"),
        ({"block_count": 2, "context_length": float("inf")}, "context_length is inf"),
    ],
)
def test_metadata_that_no_engine_loads_are_named(values: dict[str, object], words: str) -> None:
    """The sentence has the key and what is wrong with it."""
    file = ModelFile("llama", {f"llama.{key}": value for key, value in values.items()}, ())  # type: ignore[misc]

    with pytest.raises(ShapeInvalid, match=re.escape(words)):
        estimate(file, Plan())


def test_the_largest_numbers_that_an_engine_loads_are_taken() -> None:
    """512 layers, widths of 32 bits; of all layers at least one is not for drafts alone."""
    most = 2**32 - 1
    shape = shape_of(
        "llama", {"block_count": 512, "context_length": most, "attention.head_count": (1,) * 511 + (most,)}
    )
    assert (len(shape.layers), shape.trained, shape.work.heads) == (512, most, most)
    assert len(shape_of("llama", {"block_count": 3, "nextn_predict_layers": 3}).layers) == 1


def shape_of(architecture: str, values: Mapping[str, Value], *tensors: tuple[str, tuple[int, ...]]) -> Shape:
    """Of a file that says this, and nothing else."""
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    made = tuple(Tensor(name, size, "F32", 4 * math.prod(size)) for name, size in tensors)
    return Shape.of(ModelFile(architecture, named, made, 1000))


ONE = {"block_count": 1, "embedding_length": 100, "attention.head_count": 3}


@pytest.mark.parametrize(
    ("architecture", "values", "layer"),
    [
        # A head is as wide as its part of the model, without the rest.
        ("llama", {}, Layer(key=99, value=99)),
        ("llama", {"attention.head_count": 1}, Layer(key=100, value=100)),
        ("llama", {"attention.head_count_kv": 2, "attention.value_length": 8}, Layer(key=66, value=16)),
        ("llama", {"attention.head_count": 0}, Layer()),
        ("llama", {"attention.head_count": (0,), "attention.head_count_kv": (2,), "attention.key_length": 8}, Layer()),
        ("llama", {"attention.key_length": (8, 32, 16)}, Layer(key=96, value=99)),
        ("llama", {"attention.key_length": ()}, Layer(key=99, value=99)),
        # Values come out of keys where the file has both lengths of those before they are made small.
        ("deepseek2", {"attention.key_length_mla": 9, "attention.value_length_mla": 9}, Layer(key=99)),
        ("deepseek2", {"attention.key_length_mla": 9}, Layer(key=99, value=99)),
        # Listed layers that keep a state; else all but every fourth, or as many-th as the file says.
        ("qwen3next", {"attention.recurrent_layers": (0,), "full_attention_interval": 2}, Layer(key=99, value=99)),
        ("qwen3next", {"full_attention_interval": 1}, Layer(key=99, value=99)),
        ("qwen3next", {"ssm.inner_size": 6, "ssm.state_size": 5}, Layer(state=30)),
        # Convolutions look back over one less than their kernel is long.
        (
            "mamba",
            {"ssm.conv_kernel": 4, "ssm.inner_size": 6, "ssm.state_size": 5, "ssm.group_count": 2},
            Layer(state=30, convolution=3 * (6 + 2 * 2 * 5)),
        ),
        ("mamba", {"ssm.inner_size": 6, "ssm.state_size": 5}, Layer(state=30)),
        ("rwkv7", {"wkv.head_size": 8}, Layer(state=800, convolution=200)),
        ("rwkv7", {"wkv.head_size": 8, "token_shift_count": 1}, Layer(state=800, convolution=100)),
        ("kimi-linear", {"attention.head_count_kv": (0,), "kda.head_dim": 7}, Layer(state=147, convolution=189)),
        (
            "kimi-linear",
            {"attention.head_count_kv": (0,), "kda.head_dim": 7, "ssm.conv_kernel": 2},
            Layer(state=147, convolution=63),
        ),
        ("lfm2", {"attention.head_count_kv": (0,), "shortconv.l_cache": 3}, Layer(convolution=200)),
        ("minimax-01", {"attention.key_length": 5}, Layer(state=75)),
        ("nemotron_h", {"feed_forward_length": (9,), "attention.head_count_kv": (0,)}, Layer()),
    ],
)
def test_what_a_layer_keeps(architecture: str, values: dict[str, Value], layer: Layer) -> None:
    """Elements of keys and values for each token, of a state and of its convolution for each sequence."""
    assert shape_of(architecture, {**ONE, **values}).layers == (layer,)


def test_which_layers_keep_a_state_is_told_by_the_file_or_counted() -> None:
    """The last of each group attends, and so do those that are only for drafts."""

    def recurrent(**values: Value) -> list[bool]:
        given = {"block_count": 8, "ssm.inner_size": 1, "ssm.state_size": 1, **values}
        return [bool(layer.state) for layer in shape_of("qwen3next", given).layers]

    assert recurrent() == [True, True, True, False] * 2
    assert recurrent(full_attention_interval=3) == [True, True, False] * 2 + [True, True]
    assert recurrent(**{"attention.recurrent_layers": (1, 0) * 4}) == [True, False] * 4
    assert recurrent(nextn_predict_layers=2) == [True, True, True, False, True, True]


def test_which_layers_look_back_only_so_far_is_told_by_the_file_or_counted() -> None:
    """By a list, or by the distance of those that see everything; a window of no width is none."""

    def windowed(architecture: str, **values: Value) -> list[bool]:
        given = {"block_count": 6, "attention.sliding_window": 9} | {f"attention.{k}": v for k, v in values.items()}
        return [layer.windowed for layer in shape_of(architecture, given).layers]

    assert windowed("llama") == [False] * 6
    assert windowed("gemma2") == [True, False] * 3
    assert windowed("gemma2", sliding_window=0) == [False] * 6
    assert windowed("gemma2", sliding_window_pattern=3) == [True, True, False] * 2
    assert windowed("gemma2", sliding_window_pattern=(1, 0, 0, 0, 0, 1)) == [True, False, False, False, False, True]
    assert windowed("cohere2moe") == [False, True, True, True, False, True]
    assert windowed("gemma4") == [True] * 6
    assert windowed("exaone4") == [False] * 6
    for name, values, width in (("gemma2", {}, 9), ("smallthinker", {}, 4096), ("llama", {}, 0)):
        assert shape_of(name, {"block_count": 6, "attention.sliding_window": 9, **values}).window == width
    assert shape_of("gemma2", {"block_count": 6}).window == 4096


def test_a_model_of_which_little_is_known_needs_little() -> None:
    """No width is made up."""
    shape = shape_of("llama", {"block_count": 1})
    assert shape.work == Work(0, 1000, gated=False)
    assert (shape.layers, shape.widest_value, shape.window, shape.trained) == ((Layer(),), 0, 0, 0)


GATE, GATES = ("blk.0.ffn_gate.weight", (8, 40)), ("blk.1.ffn_gate_exps.weight", (8, 16, 4))
DOWN, DOWNS = ("blk.0.ffn_down.weight", (40, 8)), ("blk.1.ffn_down_exps.weight", (16, 8, 4))


@pytest.mark.parametrize(
    ("values", "tensors", "dense", "expert"),
    [
        ({}, (GATE, DOWN), 40, 0),
        ({"expert_feed_forward_length": 16}, (GATE, DOWN), 40, 0),
        # Experts beside dense layers, and alone, each with a width of their own and without.
        ({"expert_used_count": 2, "expert_feed_forward_length": 16}, (GATE, DOWN, GATES, DOWNS), 40, 16),
        ({"expert_used_count": 2, "expert_feed_forward_length": 16}, (GATES, DOWNS), 0, 16),
        ({"expert_used_count": 2}, (GATE, DOWN, GATES, DOWNS), 40, 40),
        ({"expert_used_count": 2}, (GATES, DOWNS), 0, 40),
    ],
)
def test_how_wide_a_feed_forward_network_is(
    values: dict[str, Value], tensors: tuple[tuple[str, tuple[int, ...]], ...], dense: int, expert: int
) -> None:
    """That of all tokens, and that of one expert: the file has one number or two, its tensors say which there are."""
    work = shape_of("llama", {"block_count": 2, "feed_forward_length": (40, 8), **values}, *tensors).work
    assert (work.feed_forward, work.expert_feed_forward) == (dense, expert)


def test_widths_that_only_tensors_tell() -> None:
    """The vocabulary as it is embedded, the widest expert that all tokens use, what is looked up for each layer."""
    work = shape_of(
        "llama",
        {"block_count": 2, "attention.head_count": (2, 4), "attention.key_length": 8, "attention.value_length": 12},
        ("output.weight", (8, 99)),
        ("token_embd.weight", (8, 77)),
        ("blk.0.ffn_up_shexp.weight", (8, 20)),
        ("blk.1.ffn_up_shexp.weight", (8, 30)),
        ("per_layer_token_embd.weight", (48, 77)),
    ).work
    assert (work.vocabulary, work.shared_feed_forward, work.per_layer) == (77, 30, 48)
    assert (work.heads, work.head) == (4, 12)


@pytest.mark.parametrize(
    ("tensor", "gated"),
    [
        (("blk.0.ffn_gate.weight", (8, 40)), True),
        (("blk.0.ffn_gate_exps.weight", (8, 40, 4)), True),
        (("blk.0.ffn_gate_inp.weight", (8, 4)), False),
        (("blk.0.ffn_up.weight", (8, 40)), False),
        (("blk.0.ffn_up.weight", (8, 80)), True),
        (("blk.0.ffn_down.weight", (80, 80)), False),
    ],
)
def test_a_gate_is_a_matrix_of_its_own_or_one_with_the_other_half(
    tensor: tuple[str, tuple[int, ...]], gated: bool
) -> None:
    """What chooses experts is none."""
    assert shape_of("llama", {"block_count": 1, "feed_forward_length": 40}, tensor).work.gated is gated


def test_fewer_layers_and_less_context_need_less() -> None:
    """An 8B model at all layers and 32,768 tokens, and what "lower its layers and its context" brings it to."""
    large = estimate(LLAMA.file(), replace(ONE_GPU, context=32768))
    small = estimate(LLAMA.file(), replace(ONE_GPU, context=4096, layers=20))

    assert gpu(large).kv_bytes == 8 * 512 * MIB
    assert gpu(small).total_bytes < gpu(large).total_bytes / 2


def test_an_estimate_is_little_work() -> None:
    """A quote makes dozens of them: of 100 layers on two GPUs, with what is made once for the file kept, one is two
    dozen calls a layer. Their time is told by the bench."""
    header = HEADERS["Qwen3-8B"]
    blocks = [one for one in header.tensors if one[0].startswith("blk.0.")]
    tensors = [one for one in header.tensors if not one[0].startswith("blk.")]
    tensors += [(name.replace("blk.0.", f"blk.{n}."), *rest) for n in range(100) for name, *rest in blocks]  # type: ignore[misc]
    deep = Header("deep", "qwen3", {**header.values, "block_count": 100}, tuple(tensors), header.vocabulary)
    shape = Shape.of(deep.file())
    plans = [replace(TWO_GPUS, layers=count, tensor_split=(2.0, 1.0)) for count in range(1, 102)]
    estimate(shape, plans[0])

    assert max(calls_of(partial(estimate, shape, plan)) for plan in plans) < 30 * 100


def test_everything_goes_to_a_gpu_by_default() -> None:
    """The default of a plan is more layers than any model has."""
    assert estimate(LLAMA.file(), ONE_GPU).layers == 33
    assert ONE_GPU.layers == ALL_LAYERS
