"""Reads an engine's last words: what went wrong, and what its user can do about it.

One table, the most telling rule first; each rule was seen in an engine's own output or source. Never guesses: words
that no rule knows are handed on as they are.
"""

import re
from collections.abc import Sequence

from gpud.core.errors import BackendFailed
from gpud.core.facts import Exit, Model
from gpud.core.record import Record


class Failure(Record):
    """``kind`` is for programs, ``sentence`` says what the engine ran into, ``hint`` what to do next."""

    kind: str
    sentence: str
    hint: str


class _Rule(Record):
    kind: str
    pattern: re.Pattern[str]
    sentence: str
    hint: str


def _rule(kind: str, pattern: str, sentence: str, hint: str) -> _Rule:
    return _Rule(kind, re.compile(pattern, re.IGNORECASE), sentence, hint)


_LESS_GPU = "lower layers or context, set cache_type_k and cache_type_v to q8_0, or unload another model"
_LESS_HOST = "lower context, choose a smaller quantization, or free host memory"
_LESS_SERVED = "lower its context, set its size higher, or unload another model"
_AGAIN = "the file was cut short or changed: download it again"

RULES: tuple[_Rule, ...] = (
    _rule(
        "oom-gpu",
        r"allocating (?P<size>[\d.]+ MiB) on device (?P<device>\d+): \w*malloc failed: out of memory",
        "the GPU's memory was exhausted: {size} more could not be had on device {device}",
        _LESS_GPU,
    ),
    _rule(
        "oom-gpu",
        r"(?:cuda|hip|rocm|sycl)[\w ]*error:? .*out of memory|ErrorOutOfDeviceMemory|cudaMalloc failed",
        "the GPU's memory was exhausted",
        _LESS_GPU,
    ),
    _rule(
        "oom-gpu",
        r"unable to allocate (?P<device>(?:CUDA|ROCm|Vulkan|SYCL|HIP|MUSA)\w*) buffer",
        "the memory of {device} was exhausted while the weights were loaded",
        _LESS_GPU,
    ),
    _rule(
        "oom-gpu",
        r"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<size>[\d.]+ [KMGT]iB)",
        "the GPU's memory was exhausted: {size} more could not be had",
        _LESS_SERVED,
    ),
    _rule(
        "gpu-taken",
        r"Free memory on device (?:\S+ )?\((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than desired GPU memory "
        r"utilization \([\d.]+, (?P<wanted>[\d.]+) GiB\)",
        "only {free} GiB of the GPU were free when it started, of the {wanted} GiB that it was to have",
        "another program has taken them meanwhile, see gpudctl vram; load it again",
    ),
    _rule(
        "size-too-small",
        r"(?P<need>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
        r"\((?P<have>[\d.]+) GiB\)",
        "one whole context takes {need} GiB of keys and values, and it has {have} GiB for them",
        "lower its context, or set its size higher",
    ),
    _rule(
        "size-too-small",
        r"No available memory for the cache blocks|Not enough memory to handle \d+ (?:total|prefill) tokens",
        "nothing of its memory was left for keys and values after the weights",
        _LESS_SERVED,
    ),
    _rule(
        "no-kernel-image",
        r"no kernel image is available for execution|named symbol not found",
        "the engine was built for other GPUs than this one",
        "install a build for this GPU's compute capability",
    ),
    _rule(
        "oom-host",
        r"failed to allocate buffer of size (?P<size>\d+)",
        "the host's memory was exhausted: {size} more bytes could not be had",
        _LESS_HOST,
    ),
    _rule(
        "oom-host",
        r"unable to allocate CPU\w* buffer|std::bad_alloc|Cannot allocate memory|^MemoryError",
        "the host's memory was exhausted",
        _LESS_HOST,
    ),
    _rule(
        "oom",
        r"failed to allocate (?:buffer for kv cache|compute \w* ?buffers)|failed to allocate.*kv cache",
        "there was no memory for the context's buffers",
        _LESS_GPU,
    ),
    _rule(
        "no-such-model",
        r"(?P<name>\S+) is not a local folder and is not a valid model identifier|Repository Not Found for url: "
        r"https?://[^/]+/(?:api/models/)?(?P<other>[\w.-]+/[\w-]+(?:\.[\w-]+)*)",
        "Hugging Face knows no model {name}{other}",
        "correct its model, or name its folder with file; a private one needs HF_TOKEN in its environment",
    ),
    _rule(
        "not-allowed",
        r"Cannot access gated repo|Access to model (?P<name>\S+) is restricted",
        "Hugging Face gives this model only to those who asked for it",
        "accept its terms there, and set HF_TOKEN in its environment",
    ),
    _rule(
        "not-downloaded",
        r"offline mode is enabled|LocalEntryNotFoundError|couldn't connect to 'https://huggingface\.co'",
        "the model is not on this machine and could not be downloaded",
        "download it first (hf download NAME), or see that the network is there",
    ),
    _rule(
        "unsupported",
        r"Model architectures \['?(?P<name>[^\]']*)'?\] (?:are not supported|failed to be inspected)|"
        r"Unsupported model type (?P<other>\S+)",
        "this build of the engine does not know the architecture '{name}{other}'",
        "install a newer build of the engine, or choose another model",
    ),
    _rule(
        "bad-setting",
        r"max_model_len \((?P<wanted>\d+)\) is greater than the derived max_model_len "
        r"\(\w+=(?P<most>[\d.]+)",
        "its context of {wanted} is more than the {most} tokens that the model was trained for",
        "lower its context",
    ),
    _rule(
        "bad-setting",
        r"(?P<what>`?max_(?:input|total)_tokens`? must be .+)",
        "{what}",
        "correct its context or extra_flags",
    ),
    _rule(
        "bad-setting",
        r"(?P<what>Bfloat16 is only supported on GPUs with compute capability of at least [\d.]+)",
        "{what}",
        "add --dtype=half to its extra_flags",
    ),
    _rule(
        "file-missing",
        r"failed to open .*\(No such file or directory\)|Model path does not exist: ",
        "the model file is not there",
        "correct the path in the configuration, or put the file there",
    ),
    _rule(
        "file-unreadable",
        r"failed to open (?:GGUF file )?'?(?P<path>[^']+?)'? ?\((?P<why>[^)]+)\)",
        "{path} cannot be opened: {why}",
        "see to it that the user gpud runs as may read it",
    ),
    _rule(
        "not-a-model",
        r"invalid magic characters:? '?(?P<magic>[^',]*)'?",
        "the file is not a GGUF file: it starts with '{magic}'",
        "point it at a .gguf file; safetensors and PyTorch files have to be converted first",
    ),
    _rule(
        "truncated",
        r"failed to read (?:key-value pairs|tensor info|magic|header|tensor data)",
        "the model file ends within its header",
        _AGAIN,
    ),
    _rule(
        "truncated",
        r"tensor '(?P<tensor>[^']+)' data is not within the file bounds",
        "the model file ends before tensor {tensor}",
        _AGAIN,
    ),
    _rule("truncated", r"model is corrupted or incomplete", "the model file is corrupted or incomplete", _AGAIN),
    _rule(
        "unsupported",
        r"unknown model architecture: '(?P<name>[^']*)'",
        "this build of the engine does not know the architecture '{name}'",
        "install a newer build of the engine, or choose another model",
    ),
    _rule(
        "unsupported",
        r"unknown (?:pre-tokenizer|tokenizer) type: '?(?P<name>[^']*)'?",
        "this build of the engine does not know the tokenizer '{name}'",
        "install a newer build of the engine, or choose another model",
    ),
    _rule(
        "incomplete",
        r"(?:missing )?tensor '(?P<tensor>[^']+)' not found|missing tensor '(?P<other>[^']+)'",
        "the model file lacks a tensor that its architecture needs ({tensor}{other})",
        "the file was converted wrongly or for another engine version: get another conversion",
    ),
    _rule(
        "wrong-shape",
        r"tensor '(?P<tensor>[^']+)' has wrong shape",
        "tensor {tensor} has a shape that this build of the engine does not expect",
        "install a newer build of the engine, or get another conversion",
    ),
    _rule(
        "bad-setting",
        r"(?P<what>[KV] cache type \S+ with block size .+)",
        "{what}",
        "set that cache type to f16, or leave it out",
    ),
    _rule(
        "bad-projector",
        r"failed to load (?:CLIP|multimodal) model,? (?:from )?'?(?P<path>[^']+)",
        "the multimodal projector cannot be loaded: {path}",
        "mmproj has to name the projector that was published with this very model",
    ),
    _rule(
        "bad-draft",
        r"failed to load draft model,? '?(?P<path>[^']+)|draft model .*not compatible",
        "the draft model cannot be used",
        "draft_file has to name a model with the same vocabulary",
    ),
    _rule(
        "bad-flag",
        r"error: (?:invalid argument|unknown argument|unrecognized arguments|unexpected argument):? (?P<flag>.+)",
        "the engine does not know {flag}",
        "correct extra_flags, or install a build of the engine that knows it",
    ),
    _rule(
        "bad-flag",
        r"(?:error while handling |: error: )argument \"?(?P<flag>--?[\w-]+)[^:]*: ?(?P<why>.*)",
        "the engine does not accept the value of {flag}: {why}",
        "correct the setting that belongs to it",
    ),
    _rule(
        "port-in-use",
        r"couldn't bind (?:HTTP server socket|to server socket),? ?(?P<where>.*)|address already in use",
        "the engine could not listen: the address is taken ({where})",
        "nothing needs to be done when it happens once: another port is taken at the next start",
    ),
    _rule(
        "library-missing",
        r"error while loading shared libraries: (?P<name>[^:]+)",
        "the engine's library {name} cannot be found",
        "install it, or name its folder with LD_LIBRARY_PATH in the engine's environment",
    ),
    _rule(
        "package-missing",
        r"(?:ModuleNotFoundError|ImportError): No module named '?(?P<name>[\w.]+)",
        "the Python package {name} is not installed for the engine",
        "install it into the interpreter that the engine runs with",
    ),
    _rule(
        "engine-bug",
        r"(?P<what>GGML_ASSERT\(.*\)) failed",
        "the engine stopped itself: {what}",
        "install another build of the engine, or change the setting that leads there",
    ),
    # The last rule: a CUDA build that was told to stay off the GPU says the same, and means no harm.
    _rule(
        "gpu-driver",
        r"CUDA driver version is insufficient|failed to initialize CUDA: |no CUDA-capable device is detected|"
        r"Failed to infer device type",
        "the GPU driver cannot be used by the engine",
        "compare the engine's CUDA version with nvidia-smi, and see that gpud may open /dev/nvidia*",
    ),
)


def classify(lines: Sequence[str]) -> Failure | None:
    """The first rule of the table that any line fulfils; of several lines the last, which is the final attempt."""
    for rule in RULES:
        for line in reversed(lines):
            match = rule.pattern.search(line)
            if match is not None:
                found = {name: (text or "").strip() for name, text in match.groupdict().items()}
                return Failure(rule.kind, rule.sentence.format(**found).replace(" ()", ""), rule.hint)
    return None


def last_line(lines: Sequence[str]) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


_BAD = re.compile(
    r"^(?:[\d.]+ )?[EW] |error|fail|cannot |unable|abort|assert|warn|exception|traceback|fatal|out of memory|corrupt",
    re.IGNORECASE,
)


def sounds_bad(line: str) -> bool:
    """Whether a line may be about something that went wrong."""
    return _BAD.search(line) is not None


def telling_line(lines: Sequence[str]) -> str:
    """The first line that speaks of an error, which is the cause of those after it; else the last line."""
    return next((line.strip() for line in lines if "warning" not in line and sounds_bad(line)), last_line(lines))


def load_failed(model: Model, engine: str, ended: Exit) -> BackendFailed:
    """What to say of an engine that ended before it was ready."""
    tail = ended.tail
    start = f'cannot load "{model.name}": {engine} {ended.describe()} before it was ready'
    if ended.oom_killed:
        return BackendFailed(start, hint=_LESS_HOST, kind="oom-host", tail=tail)
    failure = classify(tail)
    if failure is not None:
        named = f"{start}: {failure.sentence}" + (
            f" ({model.settings.file})" if model.settings.file and failure.kind in _ABOUT_FILE else ""
        )
        return BackendFailed(named, hint=failure.hint, kind=failure.kind, tail=tail)
    said = telling_line(tail)
    return BackendFailed(
        f"{start}; it said: {said}" if said else f"{start} and said nothing",
        hint=f'run "gpudctl logs {model.name}" for all that it said',
        kind="exited",
        tail=tail,
    )


_ABOUT_FILE = frozenset({"file-missing", "not-a-model", "truncated", "unsupported", "incomplete", "wrong-shape"})


def load_late(model: Model, engine: str, tail: Sequence[str]) -> BackendFailed:
    """What to say of an engine that lives and is not ready when the load's time is over."""
    said = last_line(tail)
    return BackendFailed(
        f'cannot load "{model.name}": {engine} was not ready within {model.load_timeout_s:g} s'
        + (f"; its last line was: {said}" if said else ""),
        hint=f'raise load_timeout of "{model.name}" if the disk is slow, else run "gpudctl logs {model.name}"',
        kind="timeout",
        tail=tail,
    )


def crash_hint(ended: Exit) -> str:
    """What to do about an engine that had been ready and ended by itself; empty when its words do not tell."""
    if ended.oom_killed:
        return _LESS_HOST
    failure = classify(ended.tail)
    return "" if failure is None else f"{failure.sentence}; {failure.hint}"
