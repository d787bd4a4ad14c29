"""llama-server's command line, read as far as it decides about memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.backends.llama_plan import plan_of
from gpud.core.errors import InvalidArguments
from gpud.core.plan import ALL_LAYERS, Plan


def plan(line: str, gpus: int = 1, **environment: str) -> Plan:
    return plan_of(line.split(), gpus, environment)


def test_an_empty_line_is_the_servers_defaults() -> None:
    """The context of the model, its own slots over one cache, every layer on the GPU."""
    assert plan("") == Plan(gpus=1)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("-c 4096", "context", 4096),
        ("--ctx-size 4096", "context", 4096),
        ("--ctx_size 4096", "context", 4096),
        ("--ctx-size=4096", "context", 4096),
        ("-c 1 -c 2", "context", 2),
        ("--kv-unified-per-slot 2048", "context", 8192),
        ("--kv-unified-per-slot 2048 -np 3", "context", 6144),
        ("--kv-unified-per-slot 2048 -c 4096", "context", 4096),
        ("-np 3", "parallel", 3),
        ("--parallel -1", "parallel", None),
        ("-np 3 -np -1", "parallel", None),
        ("-np 2 -kvu", "unified", True),
        ("-np 2 -kvu --no-kv-unified", "unified", False),
        ("-np 2", "unified", None),
        ("-no-kvu", "unified", None),
        ("-b 1024", "batch", 1024),
        ("-ub 1024", "micro_batch", 1024),
        ("-b 64", "micro_batch", 64),
        ("--ubatch-size 128 --rerank", "batch", 128),
        ("--embeddings", "batch", 512),
        ("--embedding", "embeddings", True),
        ("--reranking", "embeddings", True),
        ("-ctk q8_0", "type_k", "q8_0"),
        ("--cache-type-v q4_0", "type_v", "q4_0"),
        ("-fa on", "flash_attention", "on"),
        ("-fa 0", "flash_attention", "off"),
        ("-fa -c 4096", "flash_attention", "on"),
        ("--flash-attn auto", "flash_attention", "auto"),
        ("-ngl auto", "layers", ALL_LAYERS),
        ("-ngl all", "layers", ALL_LAYERS),
        ("-ngl -1", "layers", ALL_LAYERS),
        ("--n-gpu-layers 999", "layers", 999),
        ("--gpu-layers 0", "layers", 0),
        ("-nkvo", "kv_on_gpu", False),
        ("--no-kv-offload --kv-offload", "kv_on_gpu", True),
        ("--swa-full", "full_swa", True),
        ("-cmoe", "cpu_moe", ALL_LAYERS),
        ("-ncmoe 5", "cpu_moe", 5),
        ("-cmoe -ncmoe 5", "cpu_moe", 5),
        ("-ot a.b=CPU,exps=CUDA1 -ot x=CPU", "override_tensors", (("a.b", "CPU"), ("exps", "CUDA1"), ("x", "CPU"))),
        ("-ncffn 2", "override_tensors", ((r"blk\.(0|1)\.ffn_(up|down|gate)\.", "CPU"),)),
        ("-ncffn 0", "override_tensors", ()),
        ("-sm row", "split_mode", "row"),
        ("-ts 3,1", "tensor_split", (3.0, 1.0)),
        ("-ts 3/1", "tensor_split", (3.0, 1.0)),
        ("-mg 1", "main_gpu", 1),
        ("-m a.gguf", "file", "a.gguf"),
        ("-mm p.gguf", "mmproj", "p.gguf"),
        ("-mm p.gguf --no-mmproj", "mmproj", ""),
        ("--lora a,b --lora c", "adapters", ("a", "b", "c")),
        ("--lora-scaled a:0.5,b:2", "adapters", ("a", "b")),
        ("--control-vector v --lora a", "adapters", ("v", "a")),
        ("--control-vector-scaled v:1.5", "adapters", ("v",)),
        ("-dev none", "gpus", 0),
        ("-dev CUDA0", "gpus", 1),
        ("-sm none -mg -1", "gpus", 0),
        ("--temp 0.5 --alias x --unheard-of -1", "context", 0),
    ],
)  # fmt: skip
def test_every_spelling_is_understood(line: str, field: str, value: object) -> None:
    """The last word counts, except where words add up."""
    assert getattr(plan(line, gpus=2), field) == value


def test_a_device_list_narrows_what_is_seen() -> None:
    """Of four GPUs the line takes two; it cannot make more of none."""
    assert plan("-dev CUDA0,CUDA3", gpus=4).gpus == 2
    assert plan("-dev CUDA0,CUDA3", gpus=0).gpus == 0


def test_a_draft_model_follows_the_main_one() -> None:
    """In all that it has no flag of its own for; its cache is f16 unless it is told."""
    draft = plan("-c 8192 -np 2 -ctk q8_0 -fa on -md d.gguf").draft
    assert draft == Plan(context=8192, parallel=2, flash_attention="on", gpus=1, file="d.gguf")
    draft = plan("-c 8192 -md d.gguf -cd 512 -ngld 3 -ctkd q8_0 -ctvd q4_0 -devd none -otd x=CPU -ncmoed 2").draft
    assert draft is not None
    assert (draft.context, draft.layers, draft.type_k, draft.type_v) == (512, 3, "q8_0", "q4_0")
    assert (draft.gpus, draft.override_tensors, draft.cpu_moe) == (0, (("x", "CPU"),), 2)


def test_variables_count_where_the_line_is_silent() -> None:
    """As llama-server reads them; one that negates does so whatever it says."""
    read = plan("-c 4096", LLAMA_ARG_CTX_SIZE="1", LLAMA_ARG_N_PARALLEL="2", LLAMA_ARG_KV_UNIFIED="off", PATH="/bin")
    assert (read.context, read.parallel, read.unified) == (4096, 2, False)
    assert plan("", LLAMA_ARG_NO_KV_OFFLOAD="0").kv_on_gpu is False
    assert plan("-ot b=CPU", LLAMA_ARG_OVERRIDE_TENSOR="a=CPU").override_tensors == (("b", "CPU"),)
    assert plan("", LLAMA_ARG_OVERRIDE_TENSOR="a=CPU").override_tensors == (("a", "CPU"),)


@pytest.mark.parametrize(
    "line",
    [
        "-c many", "-c -5", "-c 12abc", "-c", "-np 0", "-np -2", "-b 0", "-ub x", "-ctk Q8_0", "-ctv int3",
        "-fa banana",
        "-ngl most", "-ncmoe -1", "-ot blk", "-ot =CPU", "-ot (=CPU", "-sm diagonal", "-ts 1,x", "-ts -1", "-ts inf",
        "-mg x", "-sm none -mg 2", "-md", "-ngld some", "--swa-full=perhaps",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_flag(line: str) -> None:
    """Never taken for a default."""
    with pytest.raises(InvalidArguments) as problem:
        plan(line, gpus=2)
    named = problem.value.message + problem.value.hint
    assert (
        any(word.partition("=")[0] in named for word in line.split() if word.startswith("-")) or "--main-gpu" in named
    )


def test_a_variable_that_cannot_be_read_is_said() -> None:
    """With its own name."""
    with pytest.raises(InvalidArguments, match="LLAMA_ARG_CTX_SIZE"):
        plan("", LLAMA_ARG_CTX_SIZE="big")


@given(
    st.lists(st.sampled_from(["-c", "-ngl", "5", "-1", "-fa", "on", "-kvu", "--x", "-ot", "a=b", "-ts", "", "=", "-"]))
)
def test_any_line_is_read_or_refused(words: list[str]) -> None:
    """Nothing else happens, whatever stands where."""
    try:
        read = plan_of(words, 2)
    except InvalidArguments as problem:
        assert problem.hint
    else:
        assert read.gpus in (0, 1, 2)
