"""gpud-embedded-server: llama.cpp's own server out of the xllamacpp wheel, with llama-server's flags.

A child program, never imported by the daemon. It takes the flags that gpud passes and answers ``--help`` in
llama-server's shape, so that one adapter drives both. The wheel's server does the rest itself: it reports its load on
stdout and ends with stdin when LLAMA_SERVER_ROUTER_PORT is set; TERM has its default effect, which ends it at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

PACKAGE_MISSING = 3
"""Exit status: the wheel is not installed."""

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

USAGE = """usage: gpud-embedded-server --model FILE [flags]

A subset of llama-server's flags, with the same names and meanings.
"""


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The words of llama-server, so that one reader of last words understands both.
        if message.startswith("unrecognized arguments: "):
            message = "invalid argument: " + message.removeprefix("unrecognized arguments: ")
        elif match := re.match(r"argument (\S+?)(?:/\S+)?: (.+)", message):
            message = f'error while handling argument "{match[1]}": {match[2]}'
            _complain(message)
            raise SystemExit(1)
        _complain(f"error: {message}")
        raise SystemExit(1)

    def format_help(self) -> str:
        """llama-server's layout: names, one space, a placeholder, then the description in a column of its own."""
        lines = [USAGE]
        for action in self._actions:
            head = ", ".join(action.option_strings)
            if action.nargs != 0:
                head += f" {action.metavar or 'N'}"
            lines.append(f"{head:<39} {action.help}" if len(head) < 39 else f"{head}\n{'':<39} {action.help}")
        return "\n".join(lines) + "\n"


def _on_off(text: str) -> str:
    if text not in ("on", "off", "auto"):
        raise argparse.ArgumentTypeError(f"invalid value '{text}': use on, off or auto")
    return text


def _layers(text: str) -> int:
    if text in ("auto", "all"):
        return -1
    return _integer(text)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid value '{text}': use a whole number") from None


def _cache_type(text: str) -> str:
    if text not in CACHE_TYPES:
        raise argparse.ArgumentTypeError(f"unsupported cache type: {text}; use one of {', '.join(CACHE_TYPES)}")
    return text


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid value '{text}': use numbers such as 3,1") from None


def _pooling(text: str) -> str:
    if text not in ("none", "mean", "cls", "last", "rank"):
        raise argparse.ArgumentTypeError(f"invalid value '{text}': use none, mean, cls, last or rank")
    return text


def make_parser() -> argparse.ArgumentParser:
    """The flags, as data for both the parser and the help."""
    parser = _Parser(prog="gpud-embedded-server", add_help=False, allow_abbrev=False)
    values: tuple[tuple[tuple[str, ...], str, Callable[[str], Any], str], ...] = (
        (("-m", "--model"), "FNAME", str, "model path to load"),
        (("-a", "--alias"), "STRING", str, "model name aliases, comma-separated"),
        (("--host",), "HOST", str, "address to listen on, or a UNIX socket path ending in .sock (default: 127.0.0.1)"),
        (("--port",), "PORT", _integer, "port to listen on, 0 chooses one (default: 8080)"),
        (("-c", "--ctx-size"), "N", _integer, "size of the prompt context, 0: from the model (default: 4096)"),
        (
            ("-ngl", "--gpu-layers"),
            "N",
            _layers,
            "layers to keep on the GPU: a number, 'auto' or 'all' (default: auto)",
        ),
        (("-dev", "--device"), "DEVICE", str, "only 'none' is known: stay off every GPU"),
        (("-fit", "--fit"), "[on|off]", _on_off, "fit unset arguments into device memory (default: off)"),
        (("-ts", "--tensor-split"), "N0,N1,N2,...", _shares, "each GPU's part of the model, comma-separated"),
        (("-ncmoe", "--n-cpu-moe"), "N", _integer, "keep the experts of the first N layers on the CPU"),
        (("-ot", "--override-tensor"), "PATTERN=BUFFER,...", str, "keep the tensors that match in this kind of buffer"),
        (("-t", "--threads"), "N", _integer, "CPU threads for generation (default: all)"),
        (("-np", "--parallel"), "N", _integer, "number of slots (default: 1)"),
        (("-b", "--batch-size"), "N", _integer, "logical maximum batch size (default: 2048)"),
        (("-ub", "--ubatch-size"), "N", _integer, "physical maximum batch size (default: 512)"),
        (("-ctk", "--cache-type-k"), "TYPE", _cache_type, "KV cache data type for K (default: f16)"),
        (("-ctv", "--cache-type-v"), "TYPE", _cache_type, "KV cache data type for V (default: f16)"),
        (("-fa", "--flash-attn"), "[on|off|auto]", _on_off, "flash attention (default: auto)"),
        (("--pooling",), "{none,mean,cls,last,rank}", _pooling, "how embeddings are pooled (default: the model's own)"),
        (("-mm", "--mmproj"), "FILE", str, "multimodal projector"),
        (("-md", "--model-draft"), "FNAME", str, "draft model for speculative decoding"),
        (("--chat-template",), "TEMPLATE", str, "name or text of the chat template (default: the model's own)"),
        (("--chat-template-file",), "FILE", str, "file with the chat template"),
        (("-cram", "--cache-ram"), "N", _integer, "host memory for cached prompts in MiB (default: 512)"),
        (("-lv", "--verbosity"), "N", _integer, "1: error, 2: warning, 3: info, 4: trace (default: 3)"),
        (("--api-key",), "KEY", str, "key that clients have to send (env: LLAMA_API_KEY)"),
    )
    switches: tuple[tuple[tuple[str, ...], str], ...] = (
        (("-cb", "--cont-batching"), "continuous batching (default: enabled)"),
        (("-nocb", "--no-cont-batching"), "no continuous batching"),
        (("--embeddings", "--embedding"), "embeddings only"),
        (("--reranking", "--rerank"), "reranking only"),
        (("--offline",), "never use the network; it never does"),
        (("--no-ui", "--no-webui"), "no web interface; it has none"),
        (("--metrics",), "serve /metrics"),
        (("--slots",), "serve /slots (default: enabled)"),
        (("--no-warmup",), "no empty run before the first request"),
        (("--version",), "print the version and exit"),
        (("-h", "--help"), "print this and exit"),
    )
    for names, metavar, kind, text in values:
        parser.add_argument(*names, metavar=metavar, type=kind, help=text)
    for switch_names, text in switches:
        parser.add_argument(*switch_names, action="store_true", help=text)
    return parser


def make_params(options: argparse.Namespace, xllamacpp: Any) -> Any:
    """The wheel's parameters for our flags."""
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host or "127.0.0.1"]
    params.port = 8080 if options.port is None else options.port
    params.ui = False
    params.offline = True
    params.endpoint_slots = True
    params.endpoint_metrics = options.metrics
    params.warmup = not options.no_warmup
    params.fit_params = options.fit == "on"
    params.cache_ram_mib = 512 if options.cache_ram is None else options.cache_ram
    params.cont_batching = not options.no_cont_batching
    key = options.api_key or os.environ.get("LLAMA_API_KEY", "")
    if key:
        params.api_keys = [key]
    if options.alias:
        params.model_alias = set(options.alias.split(","))
    numbers = {
        "n_ctx": 4096 if options.ctx_size is None else options.ctx_size,
        "n_gpu_layers": 0 if options.device == "none" else options.gpu_layers,
        "n_parallel": options.parallel,
        "n_batch": options.batch_size,
        "n_ubatch": options.ubatch_size,
        "verbosity": options.verbosity,
    }
    for name, number in numbers.items():
        if number is not None:
            setattr(params, name, number)
    if options.threads is not None:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    _set_attention(params, options, xllamacpp)
    _set_placement(params, options)
    _set_files(params, options, xllamacpp)
    return params


def _set_attention(params: Any, options: argparse.Namespace, xllamacpp: Any) -> None:
    kinds = xllamacpp.ggml_type
    if options.cache_type_k:
        params.cache_type_k = getattr(kinds, f"GGML_TYPE_{_kind_name(options.cache_type_k)}")
    if options.cache_type_v:
        params.cache_type_v = getattr(kinds, f"GGML_TYPE_{_kind_name(options.cache_type_v)}")
    if options.flash_attn:
        names = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
        types = xllamacpp.llama_flash_attn_type
        params.flash_attn_type = getattr(types, f"LLAMA_FLASH_ATTN_TYPE_{names[options.flash_attn]}")
    if options.embeddings:
        params.embedding = True
    if options.reranking:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    elif options.pooling:
        types = xllamacpp.llama_pooling_type
        params.pooling_type = getattr(types, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
    if params.embedding:
        # A text is embedded in one physical batch.
        params.n_batch = params.n_ubatch = max(params.n_ubatch, min(params.n_batch, params.n_ctx or params.n_batch))


def _kind_name(name: str) -> str:
    """``q8_0`` is Q8_0 in the wheel, ``bf16`` is BF16; only the letters grow."""
    return name.upper()


def _set_placement(params: Any, options: argparse.Namespace) -> None:
    overrides = [options.override_tensor] if options.override_tensor else []
    overrides += [rf"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU" for layer in range(options.n_cpu_moe or 0)]
    if options.tensor_split:
        places = len(params.tensor_split)
        params.tensor_split = (options.tensor_split + [0.0] * places)[:places]
    if overrides:
        params.tensor_buft_overrides = ",".join(overrides)


def _set_files(params: Any, options: argparse.Namespace, xllamacpp: Any) -> None:
    if options.mmproj:
        params.mmproj.path = options.mmproj
    if options.model_draft:
        params.speculative.draft.mparams.path = options.model_draft
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    if options.chat_template:
        params.chat_template = options.chat_template
    if options.chat_template_file:
        with open(options.chat_template_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs 3 MB here
            params.chat_template = file.read()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until TERM, or until stdin ends where gpud holds its other end."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.help:
        from importlib.util import find_spec

        if find_spec("xllamacpp") is None:
            _complain("ModuleNotFoundError: No module named 'xllamacpp'")
            return PACKAGE_MISSING
        sys.stdout.write(parser.format_help())
        return 0
    if options.version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            sys.stdout.write(f"version: xllamacpp {version('xllamacpp')}\n")
        except PackageNotFoundError:
            _complain("ModuleNotFoundError: No module named 'xllamacpp'")
            return PACKAGE_MISSING
        return 0
    if not options.model:
        parser.error("argument --model: a model is required")
    try:
        import xllamacpp
    except ImportError as problem:
        _complain(f"{type(problem).__name__}: {problem}")
        return PACKAGE_MISSING
    try:
        params = make_params(options, xllamacpp)
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError, TypeError, OSError) as problem:
        _complain(f"error: cannot serve {options.model}: {problem}")
        return 1
    return _serve(server)


def _serve(server: object) -> int:
    import signal

    # The server works in threads of its own; this one only has to stay, asleep, for as long as they live.
    while server is not None:
        signal.pause()
    return 0


if __name__ == "__main__":
    # An orderly exit: the wheel's log has a thread of its own, and its last words are written when that is joined.
    sys.exit(main())
