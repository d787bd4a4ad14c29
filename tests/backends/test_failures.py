"""Last words of engines and what is made of them: printed by real ones, or read in source where it takes a GPU."""

import pytest

from gpud.backends import failures
from gpud.core.facts import Exit, Model

MODEL = Model("tiny", "llama_server")

WORDS = [
    (
        "oom-gpu",
        "E ggml_cuda: allocating 1234.00 MiB on device 0: cudaMalloc failed: out of memory",
        "the GPU's memory was exhausted: 1234.00 MiB more could not be had on device 0",
    ),
    ("oom-gpu", "llama_model_load: error loading model: unable to allocate CUDA0 buffer", "the memory of CUDA0"),
    ("oom-gpu", "CUDA error: out of memory", "the GPU's memory was exhausted"),
    (
        "oom-gpu",
        "ggml_vulkan: Device memory allocation failed: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "GPU",
    ),
    (
        "oom-host",
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 8589934592",
        "8589934592",
    ),
    ("oom-host", "error loading model: unable to allocate CPU buffer", "the host's memory was exhausted"),
    ("oom-host", "terminate called after throwing an instance of 'std::bad_alloc'", "the host's memory"),
    (
        "oom",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "there was no memory for the context's buffers",
    ),
    ("oom", "graph_reserve: failed to allocate compute buffers", "there was no memory for the context's buffers"),
    (
        "file-missing",
        "gguf_init_from_file: failed to open GGUF file '/m/a (1).gguf' (No such file or directory)",
        "the model file is not there",
    ),
    ("file-missing", "ValueError: Model path does not exist: /m/a.gguf", "the model file is not there"),
    (
        "file-unreadable",
        "gguf_init_from_file: failed to open GGUF file '/m/a.gguf' (Permission denied)",
        "/m/a.gguf cannot be opened: Permission denied",
    ),
    (
        "not-a-model",
        "gguf_init_from_reader: invalid magic characters: 'GGML', expected 'GGUF'",
        "the file is not a GGUF file: it starts with 'GGML'",
    ),
    ("truncated", "gguf_init_from_reader: failed to read key-value pairs", "the model file ends within its header"),
    (
        "truncated",
        "tensor 'blk.1.ffn_gate.weight' data is not within the file bounds, model is corrupted or incomplete",
        "the model file ends before tensor blk.1.ffn_gate.weight",
    ),
    (
        "unsupported",
        "llama_model_load: error loading model: unknown model architecture: 'perceptron9000'",
        "this build of the engine does not know the architecture 'perceptron9000'",
    ),
    (
        "incomplete",
        "llama_model_load: error loading model: check_tensor_dims: tensor 'blk.1.ffn_down.weight' not found",
        "the model file lacks a tensor that its architecture needs (blk.1.ffn_down.weight)",
    ),
    (
        "bad-setting",
        "E llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=16",
        "K cache type q8_0 with block size 32 does not divide n_embd_head_k=16",
    ),
    (
        "oom-gpu",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 24 GiB",
        "2.50 GiB more could not be had",
    ),
    (
        "gpu-taken",
        "Free memory on device (31.4/47.3 GiB) on startup is less than desired GPU memory utilization (0.95, 45.0 GiB)",
        "only 31.4 GiB of the GPU were free when it started, of the 45.0 GiB",
    ),
    (
        "size-too-small",
        "(2.63 GiB KV cache is needed, which is larger than the available KV cache memory (1.64 GiB). Based on the",
        "one whole context takes 2.63 GiB of keys and values, and it has 1.64 GiB for them",
    ),
    ("size-too-small", "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory`", "nothing"),
    ("no-such-model", "OSError: x/y is not a local folder and is not a valid model identifier listed on", "model x/y"),
    (
        "no-such-model",
        "404 Client Error. Repository Not Found for url: https://huggingface.co/api/models/x/y.",
        "no model x/y",
    ),
    ("not-allowed", "OSError: You are trying to access a gated repo. Cannot access gated repo for url", "asked for it"),
    (
        "not-downloaded",
        "LocalEntryNotFoundError: outgoing traffic has been disabled, offline mode is enabled",
        "not on",
    ),
    (
        "unsupported",
        "ValueError: Model architectures ['NewForCausalLM'] are not supported for now. Supported architectures: dict",
        "architecture 'NewForCausalLM'",
    ),
    (
        "bad-setting",
        "User-specified max_model_len (4096) is greater than the derived max_model_len (max_position_embeddings=1024",
        "its context of 4096 is more than the 1024 tokens",
    ),
    (
        "bad-setting",
        "ArgumentValidation: `max_input_tokens` must be < `max_total_tokens`",
        "`max_input_tokens` must be < `max_total_tokens`",
    ),
    (
        "bad-setting",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has",
        "compute capability of at least 8.0",
    ),
    ("bad-flag", "error: unexpected argument '--turbo' found", "does not know '--turbo' found"),
    ("gpu-driver", "RuntimeError: Failed to infer device type, please set the environment variable", "cannot be used"),
    ("bad-projector", "E srv    load_model: failed to load multimodal model, '/m/p.gguf'", "/m/p.gguf"),
    ("bad-flag", "error: invalid argument: --nosuch", "the engine does not know --nosuch"),
    (
        "bad-flag",
        'error while handling argument "-ctk": Unsupported cache type: q99',
        "the engine does not accept the value of -ctk: Unsupported cache type: q99",
    ),
    ("bad-flag", "__main__.py: error: argument --n_ctx: invalid int value: 'x'", "the value of --n_ctx"),
    (
        "port-in-use",
        "E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080",
        "the engine could not listen: the address is taken (hostname: 127.0.0.1, port: 8080)",
    ),
    ("port-in-use", "ERROR:    [Errno 98] error while attempting to bind on address: address already in use", "taken"),
    (
        "library-missing",
        "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file",
        "the engine's library libcudart.so.12 cannot be found",
    ),
    ("package-missing", "ModuleNotFoundError: No module named 'llama_cpp'", "the Python package llama_cpp"),
    ("engine-bug", "/src/ggml.c:3206: GGML_ASSERT(a->ne[2] == b->ne[0]) failed", "GGML_ASSERT(a->ne[2] == b->ne[0])"),
    ("gpu-driver", "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", "the GPU driver"),
    ("no-kernel-image", "CUDA error: no kernel image is available for execution on the device", "other GPUs"),
    ("wrong-shape", "check_tensor_dims: tensor 'a' has wrong shape; expected 4, got 5", "tensor a has a shape"),
    ("bad-draft", "srv load_model: failed to load draft model, '/m/d.gguf'", "the draft model"),
    ("truncated", "error: model is corrupted or incomplete", "the model file is corrupted or incomplete"),
    ("unsupported", "error loading model vocabulary: unknown pre-tokenizer type: 'odd'", "the tokenizer 'odd'"),
]


@pytest.mark.parametrize(("kind", "line", "said"), WORDS)
def test_words_are_understood(kind: str, line: str, said: str) -> None:
    """Kind, a sentence that names what the engine named, and a hint."""
    failure = failures.classify(("loading", line, "exiting due to model loading error"))
    assert failure is not None
    assert failure.kind == kind
    assert said in failure.sentence
    assert failure.hint


def test_every_rule_is_the_first_for_some_words() -> None:
    """A rule that nothing fulfils, or that an earlier one always forestalls, is no rule."""
    used = [next(rule for rule in failures.RULES if rule.pattern.search(line)) for _, line, _ in WORDS]
    assert [rule.pattern.pattern for rule in failures.RULES if rule not in used] == []


def test_a_gpu_build_on_the_host_is_not_blamed_for_the_gpu() -> None:
    """It says that it found no device, and then what is really wrong."""
    failure = failures.classify(
        (
            "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected",
            "gguf_init_from_reader: failed to read key-value pairs",
        )
    )
    assert failure is not None
    assert failure.kind == "truncated"


def test_the_last_attempt_counts() -> None:
    """Engines try again with less before they give up."""
    failure = failures.classify(
        [f"allocating {size}.00 MiB on device 0: cudaMalloc failed: out of memory" for size in (900, 20)]
    )
    assert failure is not None
    assert failure.sentence.startswith("the GPU's memory was exhausted: 20.00 MiB")


def test_unknown_words_are_handed_on() -> None:
    """The first line that speaks of an error, not the last line that says goodbye."""
    tail = (
        "0.1.2.3 I loading",
        "0.1.2.4 E foo: the frobnicator failed",
        "0.1.2.5 E exiting due to model loading error",
    )
    error = failures.load_failed(MODEL, "llama-server", Exit(7, 1, tail))
    assert error.message == (
        'cannot load "tiny": llama-server exited with status 1 before it was ready; '
        "it said: 0.1.2.4 E foo: the frobnicator failed"
    )
    assert (error.kind, error.tail, error.preflight) == ("exited", tail, False)
    assert error.hint == 'run "gpudctl logs tiny" for all that it said'


def test_silence_is_told_as_silence() -> None:
    """An engine that ends without a word."""
    error = failures.load_failed(MODEL, "llama-server", Exit(7, -11))
    assert error.message == (
        'cannot load "tiny": llama-server was ended by signal 11 before it was ready and said nothing'
    )


def test_the_kernels_verdict_comes_first() -> None:
    """A killed engine's last words are about something else."""
    error = failures.load_failed(MODEL, "llama-server", Exit(7, -9, ("error: x",), oom_killed=True))
    assert error.kind == "oom-host"
    assert "was killed by the kernel for lack of memory" in error.message


def test_a_crash_gets_a_hint_when_its_words_tell_one() -> None:
    """For engines that had been ready."""
    assert "cache_type_k" in failures.crash_hint(Exit(7, -6, ("CUDA error: out of memory", "  current device: 0")))
    assert failures.crash_hint(Exit(7, 1, ("goodbye",))) == ""
    assert failures.crash_hint(Exit(7, -9, oom_killed=True))


def test_a_late_load_names_its_limit() -> None:
    """With the number that can be raised."""
    error = failures.load_late(Model("tiny", "x", load_timeout_s=12.5), "llama-server", ("still reading",))
    assert error.message == (
        'cannot load "tiny": llama-server was not ready within 12.5 s; its last line was: still reading'
    )
    assert error.kind == "timeout"
