"""The one table of everything that can be configured: reading, messages, the shipped file and the manual come from it.

It is long because it is a table; it holds no logic but the checks of single texts.
"""

import re
from collections.abc import Iterator

from gpud.config.engine_choice import EngineChoice, EngineOrder
from gpud.config.forbidden import check_flag, check_variable
from gpud.config.kinds import Choice, Duration, Flag, Layers, PriorityName, Share, Size, Whole, Wrong, nearest
from gpud.config.network import FileMode, RateOf, Several, allowed_host, host_name, origin
from gpud.config.sections import CUSTOM, HUB, LLAMA, LLAMA_SERVERS, OLLAMA, VLLM, Key, Named, Section
from gpud.config.texts import Environment, FilePath, Folders, Json, Text, Texts, Url, WebAddress, check_engine
from gpud.core.engines import ORDER, Family, of_family
from gpud.core.facts import EvictionPolicy

# Checks of single texts -----------------------------------------------------------------------------------------------

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
RESERVED_NAMES = ("all", "default", "status", "scan", "load", "unload")

_HUB_NAMES = " and ".join(of_family(Family.HUB)).replace(" and ", ", ", len(of_family(Family.HUB)) - 2)

_PLACEHOLDERS = ("port", "socket", "model", "file", "key")


def check_model_name(text: str) -> None:
    if not re.fullmatch(MODEL_NAME, text):
        raise Wrong(
            "is not allowed as a model's name (at most 128 of A-Z a-z 0-9 . _ : / @ + -, the first a letter or digit)"
        )
    if text in RESERVED_NAMES:
        raise Wrong(f"is a word that commands use for themselves ({' '.join(RESERVED_NAMES)}); choose another")


PATTERN_NAME = r"[A-Za-z0-9._:/@+*?\[\]!-]{1,128}"


def is_pattern(name: str) -> bool:
    """Whether a name below ``models:`` stands for all models that are found and are called like it."""
    return any(mark in name for mark in "*?[")


def check_model_name_or_pattern(text: str) -> None:
    if not is_pattern(text):
        check_model_name(text)
    elif not re.fullmatch(PATTERN_NAME, text):
        raise Wrong("is not allowed as a pattern of names (at most 128 of A-Z a-z 0-9 . _ : / @ + - and * ? [ ])")


def check_argument(text: str) -> None:
    """Raises Wrong for a placeholder that is not known; ``$$`` is a dollar sign."""
    for name in re.findall(r"\$\{([^}]*)\}", text.replace("$$", "")):
        if name == "key":
            raise Wrong("has ${key}, and everybody may read command lines; hand it over in environment")
        if name not in _PLACEHOLDERS:
            known = " ".join(f"${{{one}}}" for one in _PLACEHOLDERS)
            near = nearest(name, _PLACEHOLDERS) or "; write $$ for a dollar sign that is meant as one"
            raise Wrong(f"has the placeholder ${{{name[:20]}}}, which gpud does not know ({known}){near}")


def check_path_pattern(text: str) -> None:
    if text.startswith("/") or ".." in text.split("/"):
        raise Wrong("is not below a folder; patterns are about paths as they are below it, like qwen/*")


def check_program_pattern(text: str) -> None:
    if not text.strip() or "/" in text:
        raise Wrong("is not the name of a program without its folder, like steam_app_* or blender")


def check_probe_field(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", text):
        raise Wrong("is not the name of a field (a-z, 0-9, _, -; dots reach inside)")


_ROUTE = Text("a path that begins with /", r"/[!-~]*")
_HOST = Text("an address or a host name", r"[A-Za-z0-9._:-]{1,255}", any_scalar=True)
_GPU = Text(
    "the number of a GPU, its uuid, host (keep it off the GPU) or auto",
    r"auto|host|[0-9]{1,2}|[A-Za-z0-9][A-Za-z0-9:._-]{3,80}",
    any_scalar=True,
)
_CACHE = Choice(("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"))
_SWITCH = Choice(("on", "off", "auto"), {"true": "on", "True": "on", "false": "off", "False": "off"})
_PORT = Whole(1, 65535)

# The tables -----------------------------------------------------------------------------------------------------------

STOP = Section(
    (
        Key(
            "drain",
            Duration(),
            "How long an unload waits for running requests; after that the model stays, unless it was forced.",
            "300",
            field="drain_s",
        ),
        Key("term", Duration(0, 600), "How long the engine has after the first TERM.", "2", field="term_s"),
        Key(
            "second_term",
            Duration(0, 600),
            "How long it has after the second TERM; then it is killed with all it started.",
            "2",
            field="second_term_s",
        ),
    )
)

UNLOAD = Section(
    (
        Key("post", _ROUTE, "The path that gives the memory back, asked with POST.", required=True, example="/free"),
        Key("body", Json(), "What is sent along.", absent="nothing is sent", example="{unload_models: true}"),
    )
)

BUSY = Section(
    (
        Key(
            "get",
            _ROUTE,
            "The path that says whether the engine works, asked with GET.",
            required=True,
            example="/queue",
        ),
        Key(
            "any",
            Texts("a list of fields of the JSON answer; dots reach inside", check_probe_field, least=1),
            "It works while any of these is neither zero nor empty.",
            required=True,
            example="[queue_running, queue_pending]",
        ),
    )
)

_SETTINGS = Section(
    (
        Key(
            "file",
            FilePath(),
            f"The model's GGUF file; for {_HUB_NAMES} the folder that has its config.json and SafeTensors.",
            engines=LLAMA | HUB | CUSTOM,
            absent="required for the llama engines",
            also=("path", "model_path", "gguf", "filename"),
            example="/var/lib/ml-models/llamacpp/models/tiny.gguf",
        ),
        Key(
            "model",
            Text("a model's name in Ollama, or at Hugging Face", r"[!-~]{1,255}"),
            f"What Ollama calls the model; for {_HUB_NAMES} what Hugging Face calls it, where there is no `file`.",
            engines=OLLAMA | HUB,
            absent="its name here, for ollama",
            field="ollama_name",
            also=("ollama_name", "ollama_model"),
            example="llama3.2:3b",
        ),
        Key(
            "context",
            Whole(16, 16_777_216),
            "Tokens of context, shared by all parallel requests.",
            "4096",
            engines=LLAMA | OLLAMA | HUB,
            default_engines=LLAMA | HUB,
            shared=True,
            also=("n_ctx", "ctx", "ctx_size", "context_size", "num_ctx", "context_length"),
        ),
        Key(
            "least_context",
            Whole(16, 16_777_216),
            "Load it with a smaller context, down to this, rather than not at all.",
            engines=LLAMA | OLLAMA,
            shared=True,
            model_field=True,
            absent="it has its context or is not loaded",
            also=("min_context", "min_ctx", "minimum_context", "fit_ctx"),
            example="2048",
        ),
        Key(
            "layers",
            Layers(),
            "Layers on the GPU. auto: as many as fit, the rest in host memory. A number or all is kept: where it does "
            "not fit, the model is not loaded.",
            "auto",
            engines=LLAMA | OLLAMA,
            default_engines=LLAMA,
            shared=True,
            also=("n_gpu_layers", "gpu_layers", "ngl", "num_gpu"),
        ),
        Key(
            "threads",
            Whole(1, 1024),
            "CPU threads.",
            engines=LLAMA | OLLAMA,
            shared=True,
            absent="the engine decides",
            also=("n_threads", "num_thread"),
            example="8",
        ),
        Key(
            "parallel",
            Whole(1, 256),
            f"Requests that are served at the same time; {_HUB_NAMES} decide for themselves if it is unset.",
            "1",
            engines=LLAMA | OLLAMA | HUB,
            default_engines=LLAMA,
            shared=True,
            also=("n_parallel", "np", "slots"),
        ),
        Key(
            "batch",
            Whole(1, 65536),
            "Tokens of a prompt that are handed over at a time.",
            "2048",
            engines=LLAMA,
            default_engines=LLAMA,
            shared=True,
            also=("n_batch", "batch_size"),
        ),
        Key(
            "micro_batch",
            Whole(1, 65536),
            "Tokens that are computed at a time; less needs less memory.",
            engines=LLAMA,
            shared=True,
            absent="the engine decides",
            also=("n_ubatch", "ubatch", "ubatch_size"),
            example="256",
        ),
        Key(
            "cache_type_k",
            _CACHE,
            "How the keys of the KV cache are stored.",
            engines=LLAMA | OLLAMA,
            shared=True,
            absent="the engine decides (f16)",
            also=("type_k", "ctk", "kv_type", "cache_type"),
            example="q8_0",
        ),
        Key(
            "cache_type_v",
            _CACHE,
            "How the values of the KV cache are stored (in Ollama, as its keys).",
            engines=LLAMA,
            shared=True,
            absent="the engine decides (f16)",
            also=("type_v", "ctv"),
            example="q8_0",
        ),
        Key(
            "flash_attention",
            _SWITCH,
            "Flash attention: less memory for long contexts.",
            "auto",
            engines=LLAMA | OLLAMA,
            default_engines=LLAMA,
            shared=True,
            also=("flash_attn", "fa"),
        ),
        Key(
            "continuous_batching",
            Flag(),
            "Take up new requests while others are being answered.",
            engines=LLAMA_SERVERS,
            shared=True,
            absent="the engine decides (true)",
            also=("cont_batching",),
            example="true",
        ),
        Key(
            "cpu_moe",
            Whole(0, 999),
            "Keep the experts of this many layers in host memory.",
            engines=LLAMA_SERVERS,
            shared=True,
            absent="none",
            also=("n_cpu_moe", "ncmoe"),
            example="12",
        ),
        Key(
            "override_tensor",
            Text("pattern=device, several with commas", r"[^\0\s=,][^\0\s]*=[^\0\s]+"),
            "Where tensors whose names match go, as llama.cpp writes it.",
            engines=LLAMA_SERVERS,
            shared=True,
            absent="none",
            also=("override_tensors", "ot"),
            example='".ffn_.*_exps.=CPU"',
        ),
        Key(
            "mmproj",
            FilePath(),
            "The projector file of a model that sees or hears.",
            engines=LLAMA,
            absent="none",
            also=("projector", "clip_model_path"),
            example="/var/lib/ml-models/llamacpp/models/tiny-mmproj.gguf",
        ),
        Key(
            "draft_file",
            FilePath(),
            "A small model that guesses ahead (speculative decoding).",
            engines=LLAMA_SERVERS,
            absent="none",
            also=("draft", "draft_model", "model_draft"),
            example="/var/lib/ml-models/llamacpp/models/tiny-draft.gguf",
        ),
        Key(
            "chat_template",
            Text("the name of a template, the template itself, or the absolute path of one"),
            "Replaces the chat template in the file.",
            engines=LLAMA | VLLM,
            shared=True,
            absent="the one in the file",
            also=("chat_format", "template"),
            example="chatml",
        ),
        Key(
            "embeddings",
            Flag(),
            "Serve embeddings, and nothing else.",
            "false",
            engines=LLAMA | OLLAMA,
            shared=True,
            also=("embedding",),
        ),
        Key("reranking", Flag(), "Serve reranking.", "false", engines=LLAMA_SERVERS, shared=True, also=("rerank",)),
        Key(
            "command",
            Texts("a list: the program and its arguments; no shell reads it", check_argument, least=1),
            "Starts a custom engine. ${port} ${socket} ${model} ${file} are filled in at each start.",
            engines=CUSTOM,
            absent="`url` is required then",
            also=("cmd", "argv", "exec"),
            example='[./server, --port, "${port}"]',
        ),
        Key(
            "directory",
            FilePath(),
            "Where the command is started.",
            engines=CUSTOM,
            absent="where the file is that holds a command with a relative path; else /",
            also=("cwd", "working_directory", "workdir"),
            example="/opt/comfyui",
        ),
        Key(
            "url",
            Url(),
            "A server that somebody else runs: gpud never starts or stops it.",
            engines=CUSTOM | HUB,
            absent="gpud starts one; `command` is required for custom then",
            also=("proxy", "endpoint", "base_url"),
            example='"http://127.0.0.1:8188"',
        ),
        Key(
            "health",
            _ROUTE,
            "The path that answers 200 once the engine is ready.",
            engines=CUSTOM,
            absent="/health for a command, none for a url",
            also=("health_path", "check_endpoint", "health_check"),
            example="/health",
        ),
        Key(
            "unload",
            UNLOAD,
            "How to ask the engine for its memory without ending it.",
            engines=CUSTOM,
            absent="the engine is stopped",
        ),
        Key(
            "busy", BUSY, "How to see that the engine works.", engines=CUSTOM, absent="only requests through gpud count"
        ),
        Key(
            "size",
            Size(),
            "The memory it needs.",
            engines=None,
            model_field=True,
            field="size_bytes",
            absent=f"gpud finds out; required for custom, and for {_HUB_NAMES} at a `url`",
            also=("vram", "memory", "vram_estimate"),
            example="300MiB",
        ),
        Key(
            "gpu",
            _GPU,
            "Which GPU it goes to.",
            "auto",
            shared=True,
            model_field=True,
            also=("device", "gpu_index", "gpu_uuid", "main_gpu"),
        ),
        Key(
            "idle_timeout",
            Duration(never=True, auto=True),
            "Unload it after this long without a request; auto: the longer, the longer a load of it takes.",
            shared=True,
            model_field=True,
            field="idle_timeout_s",
            absent="idle.timeout",
            also=("ttl", "keep_alive", "timeout"),
            example="10m",
        ),
        Key(
            "priority",
            PriorityName(),
            "Which models go first in the queue, and are unloaded last.",
            "normal",
            shared=True,
            model_field=True,
        ),
        Key(
            "pinned",
            Flag(),
            "Once loaded, keep it: never unload it for idleness or to make room.",
            "false",
            shared=True,
            model_field=True,
            also=("pin", "persistent"),
        ),
        Key(
            "preload",
            Flag(),
            "Load it when gpud starts.",
            "false",
            shared=True,
            model_field=True,
            also=("autoload", "autostart", "load_on_start"),
        ),
        Key(
            "load_timeout",
            Duration(1),
            "Give up a load after this long.",
            "300",
            shared=True,
            model_field=True,
            field="load_timeout_s",
            also=("start_timeout", "health_check_timeout"),
        ),
        Key(
            "stop",
            STOP,
            "How it is stopped; what is absent comes from the section `stop`.",
            shared=True,
            model_field=True,
            absent="as in `stop`",
        ),
        Key(
            "environment",
            Environment(check_variable),
            "Variables for its engine; those of `defaults` and of the engine's defaults are added.",
            engines=LLAMA | HUB | CUSTOM,
            shared=True,
            absent="none",
            also=("env",),
            example='{GGML_CUDA_NO_PINNED: "1"}',
        ),
        Key(
            "extra_flags",
            Texts("a list of arguments", check_flag),
            "Appended to the engine's command line as they are; flags that gpud sets are refused.",
            engines=LLAMA | HUB,
            shared=True,
            absent="none",
            also=("flags", "args", "extra_args", "extraflags"),
            example='[--temp, "1.2"]',
        ),
    )
)

MODEL = Section(
    (
        Key(
            "engine",
            EngineChoice(_SETTINGS),
            "What serves the model. Of several, the first that can, and has room. auto: those of "
            "`scheduler.backend_order` that its other keys allow.",
            shared=True,
            model_field=True,
            absent="required, here or in `defaults`",
            also=("backend", "type", "runtime"),
            example="embedded",
        ),
        Key(
            "aliases",
            Texts("a list of names, each used once in the whole configuration", check_model_name),
            "Other names for the same model.",
            model_field=True,
            absent="none",
            also=("alias", "names"),
            example="[small, gpt-4o-mini]",
        ),
        *_SETTINGS.keys,
    )
)

DEFAULTS = Section(tuple(key for key in MODEL.keys if key.shared))
ENGINE_DEFAULTS = Section(tuple(key for key in DEFAULTS.keys if key.name != "engine"))

ENGINE = Section(
    (
        Key(
            "binary",
            FilePath(program=True),
            "The engine's program.",
            engines=LLAMA | OLLAMA | HUB,
            absent="looked up in PATH under its usual name",
            also=("path", "program", "executable"),
            example="/opt/llama.cpp/bin/llama-server",
        ),
        Key(
            "python",
            FilePath(program=True),
            "The Python that has the engine's package.",
            engines=frozenset({"embedded", "llama_cpp"}),
            absent="the one that runs gpud",
            also=("interpreter",),
            example="/opt/llama-cpp-python/bin/python",
        ),
        Key("host", _HOST, "Where the server that gpud starts listens.", "127.0.0.1", engines=OLLAMA),
        Key("port", Whole(0, 65535), "And on which port; 0 is any free one.", "0", engines=OLLAMA),
        Key(
            "models_dir",
            FilePath(),
            "The model store of Ollama; for other engines, where relative model files start from.",
            absent="below storage.base_directory; for others the directory of the file that names the model file",
            also=("models_directory", "models", "store"),
            example="/var/lib/ml-models/ollama/models",
        ),
        Key(
            "keep_running",
            Flag(),
            "Leave the server up when its last model was unloaded.",
            "false",
            engines=OLLAMA,
        ),
        Key(
            "url",
            Url(),
            "Use the server that runs there; gpud never starts or stops it.",
            engines=OLLAMA | HUB,
            absent="gpud starts one",
            example='"http://127.0.0.1:11434"',
        ),
        Key(
            "environment",
            Environment(check_variable),
            "Variables for each process of this engine.",
            absent="none",
            also=("env",),
            example='{OLLAMA_FLASH_ATTENTION: "1"}',
        ),
        Key("defaults", ENGINE_DEFAULTS, "What its models have unless they say otherwise: keys of `defaults`."),
    )
)


def _door(port: str) -> Section:
    return Section(
        (
            Key("enable", Flag(), "Whether to listen.", "true", also=("enabled",)),
            Key(
                "host",
                Several("an address or a host name, or a list of them; [] for none", host_name, single=True),
                "The address to listen on. One that other machines can reach needs `http.api_keys_file`.",
                "127.0.0.1",
                field="hosts",
                also=("address", "bind", "listen", "hosts"),
            ),
            Key("port", _PORT, "The port to listen on.", port),
            Key(
                "socket",
                FilePath(),
                "A Unix socket to listen on too. There a client's user is known: root and gpud's own may do all, "
                "others use models.",
                absent="none",
                also=("unix_socket",),
                example="/run/gpud/front.sock",
            ),
            Key(
                "socket_mode",
                FileMode(),
                "Who may connect to it. Its group is that of gpud.",
                "0660",
            ),
        )
    )


IDLE = Section(
    (
        Key(
            "timeout",
            Duration(never=True, auto=True),
            "Unload a model after this long without a request; auto: the longer, the longer a load of it takes.",
            "300",
            field="idle_timeout_s",
            also=("idle_timeout", "seconds", "after"),
        ),
        Key(
            "timeout_on_battery",
            Duration(1),
            "On battery, unload a model after at most this long without a request; one that is never unloaded stays.",
            absent="as long as otherwise",
            field="battery_idle_s",
            also=("battery", "on_battery_timeout"),
            example="60",
        ),
        Key(
            "sessions_idle",
            Duration(0.1, 86400),
            "Unload everything that nobody holds when all login sessions have been idle for this long, by logind.",
            absent="sessions do not matter",
            example="600",
        ),
        Key("locked", Flag(), "Unload everything that nobody holds when a session is locked.", "false"),
        Key(
            "logged_out",
            Flag(),
            "Unload everything that nobody holds when the last user has logged out.",
            "false",
        ),
    )
)

SUSPEND = Section(
    (
        Key(
            "policy",
            Choice(("unload", "keep")),
            "What happens to loaded models when the machine sleeps. keep: they stay where their memory survives it, "
            "which on NVIDIA needs a setting of its driver.",
            "unload",
            also=("models", "mode"),
        ),
        Key("restore", Flag(), "Load again what was unloaded for the sleep.", "true", also=("resume", "reload")),
        Key(
            "without_gpu",
            Choice(("refuse", "cpu")),
            "What happens to a load for a GPU when no GPU works after a sleep: it is refused, or runs on the processor "
            "this time.",
            "refuse",
            also=("gpu_lost", "loads"),
        ),
    )
)

GIVE_WAY = Section(
    (
        Key(
            "programs",
            Texts("a list of names of programs, like steam_app_* or blender", check_program_pattern),
            "Programs that have the GPUs for as long as they run.",
            absent="none",
            also=("games", "processes"),
            example="[steam_app_*, blender]",
        ),
        Key(
            "loads",
            Choice(("wait", "cpu", "refuse")),
            "What happens to a load for a GPU while a game has it: it waits, runs on the processor this time, or is "
            "refused.",
            "wait",
        ),
    )
)

GPU = Section(
    (
        Key(
            "budget",
            Size(1 << 20, percent=True),
            "What gpud may take of each GPU (of host memory, where there is no GPU).",
            absent="all but the reserve",
            also=("vram_budget", "limit", "max"),
            example="5GiB",
        ),
        Key(
            "reserve",
            Size(),
            "What is left free on each GPU for the desktop and other programs.",
            "256MiB",
            also=("vram_reserve", "safety_margin"),
        ),
        Key(
            "host_budget",
            Size(1 << 20, percent=True),
            "What gpud may take of host memory.",
            absent="all but the reserve",
            example="50%",
        ),
        Key("host_reserve", Size(), "What is left free of host memory.", "1GiB"),
        Key(
            "watch",
            Duration(1, 86400, never=True),
            "How often gpud checks what other programs hold while a model is loaded; 0: only when something happens.",
            "10",
            field="watch_s",
            also=("interval", "monitoring_interval", "poll"),
        ),
        Key(
            "external_busy_mib",
            Whole(1, 1 << 30),
            "Load nothing onto a GPU of which other programs hold this many MiB.",
            absent="what is free decides",
            also=("external_busy", "foreign_busy_mib"),
            example="6144",
        ),
        Key(
            "alert_percent",
            Share(never=True),
            "Raise an alert when this much of a GPU is used, by any program (of host memory, where there is no GPU).",
            "90%",
            also=("high_usage_threshold", "alert_threshold"),
        ),
    )
)

QUEUE = Section(
    (
        Key(
            "size",
            Whole(1, 10_000),
            "How many loads may wait for memory; the next one is refused.",
            "10",
            also=("max_queue_size", "max_size", "max_queue"),
        ),
        Key(
            "timeout",
            Duration(1),
            "How long a load waits for memory before it is refused.",
            "300",
            field="timeout_s",
            also=("timeout_seconds",),
        ),
        Key(
            "turn",
            Duration(),
            "After this long, models in the way of the one that waits take no new requests.",
            absent="10, or `queue.timeout` where that is shorter",
            field="turn_s",
            also=("max_wait", "drain_after"),
            example="10",
        ),
        Key(
            "aging",
            Duration(1),
            "A waiting model rises by one priority each time this much time has passed.",
            "60",
            field="aging_s",
        ),
    )
)

EVICTION = Section(
    (
        Key(
            "policy",
            Choice(tuple(EvictionPolicy)),
            "Which idle models go. lru: those unused for longest; priority: the same, but a lower priority first; "
            "hybrid: a lower priority first, and within one those whose loss costs least.",
            "hybrid",
            also=("eviction_policy",),
        ),
        Key(
            "residence",
            Duration(0, 86400),
            "How long a model that was loaded for a request stays at least before it goes for another.",
            "0",
            field="residence_s",
            also=("min_residence", "minimum_residence"),
        ),
        Key(
            "above",
            Share(never=True),
            "Unload idle models while more of a GPU than this is used, even if nobody needs the memory.",
            "never",
            field="above_percent",
            also=("auto_scaling_threshold", "threshold"),
        ),
        Key("below", Share(), "Stop doing so as soon as less than this is used.", "80%", field="below_percent"),
    )
)

SCHEDULER = Section(
    (
        Key(
            "backend_order",
            EngineOrder(),
            "Which engines are tried, in which order, for a model with `engine: auto`.",
            f"[{', '.join(ORDER)}]",
            also=("order", "engine_order", "backends"),
        ),
    )
)

ALERTS = Section(
    (
        Key(
            "webhook",
            WebAddress(),
            "The address to which each alert is sent as JSON, with POST.",
            absent="alerts go to the journal and to D-Bus only",
            also=("webhook_url", "url"),
            example='"https://alerts.example.org/gpud"',
        ),
    )
)

PREFETCH = Section(
    (
        Key(
            "page_cache",
            Flag(),
            "Read the file of the model that is likely to be loaded next into free host memory.",
            "true",
        ),
        Key("on_battery", Flag(), "Do so on battery, too.", "false"),
    )
)

RESTART = Section(
    (
        Key(
            "first",
            Duration(0.1),
            "The wait before the first new try after a crash; it doubles each time.",
            "5",
            field="backoff_first_s",
        ),
        Key("max", Duration(0.1), "The longest such wait.", "60", field="backoff_max_s"),
        Key(
            "attempts",
            Whole(1, 1000),
            "Tries before the model is given up until somebody asks for it.",
            "5",
            field="backoff_attempts",
        ),
        Key(
            "healthy_after",
            Duration(),
            "After this long without a crash, the tries of a model count from zero again.",
            "30",
            field="healthy_after_s",
        ),
    )
)

STORAGE = Section(
    (
        Key(
            "base_directory",
            FilePath(),
            "Models are below it: in ollama/models those of an Ollama that gpud.service (not gpud --user) starts.",
            "/var/lib/ml-models",
            also=("base_dir", "models_path"),
        ),
    )
)

REGISTRY = Section(
    (
        Key(
            "enable",
            Flag(),
            "Models that are found can be used without an entry here.",
            "true",
            also=("auto_scan", "discovery"),
        ),
        Key(
            "paths",
            Folders("the folders of models below storage.base_directory"),
            "Folders in which gpud looks for models, with everything below them.",
            "auto",
            also=("folders", "directories", "models_dirs"),
            example="[/srv/models]",
        ),
        Key(
            "include",
            Texts("a list of patterns of paths below a folder, like *.gguf or qwen/*", check_path_pattern),
            "Only what matches one of these patterns counts.",
            absent="everything",
            example="['*.gguf']",
        ),
        Key(
            "exclude",
            Texts("a list of patterns of paths below a folder, like old/*", check_path_pattern),
            "What matches one of these patterns is left out.",
            absent="nothing",
            example="['old/*']",
        ),
        Key(
            "huggingface",
            Folders("the hub caches that are there"),
            "Caches of Hugging Face's hub in which gpud looks for models.",
            "auto",
            also=("hf", "hub"),
        ),
        Key(
            "ollama",
            Folders("the stores that are there"),
            "Stores of Ollama (with manifests and blobs) in which gpud looks for models.",
            "auto",
        ),
        Key(
            "scan_interval",
            Duration(60, 30 * 86400, never=True),
            "How often gpud scans folders that cannot be watched, such as those of other machines.",
            "3600",
            field="scan_interval_s",
            also=("auto_scan_interval", "interval"),
        ),
        Key("scan_on_start", Flag(), "Scan all of them when gpud starts.", "true"),
        Key(
            "most_context",
            Whole(256, 16_777_216),
            "A found model gets as many tokens of context as it was trained for, but no more than this, and fewer "
            "where memory is short.",
            "16384",
        ),
    )
)

LOGGING = Section(
    (
        Key("level", Choice(("debug", "info", "warning", "error")), "What is logged.", "info", also=("log_level",)),
        Key(
            "engine_lines_per_second",
            Whole(1, 100_000),
            "How many lines of one engine are logged each second; the rest is counted.",
            "200",
        ),
    )
)

TLS = Section(
    (
        Key(
            "certificate",
            FilePath(),
            "The certificate in PEM, followed by those between it and its authority.",
            absent="no TLS",
            also=("cert", "cert_file", "certificate_file", "ssl_certificate"),
            example="/etc/gpud/tls/cert.pem",
        ),
        Key(
            "key",
            FilePath(),
            "Its private key in PEM.",
            absent="no TLS",
            also=("key_file", "private_key", "ssl_certificate_key"),
            example="/etc/gpud/tls/key.pem",
        ),
    )
)

HTTP_LIMITS = Section(
    (
        Key(
            "header",
            Size(1 << 10),
            "The largest header of a request.",
            "64KiB",
            field="header_bytes",
            also=("max_header", "header_size"),
        ),
        Key(
            "body",
            Size(1 << 10),
            "The largest body of a request.",
            "100MiB",
            field="body_bytes",
            also=("max_body", "body_size", "client_max_body_size"),
        ),
        Key(
            "connections",
            Whole(1, 65_536),
            "Connections at the same time; one that is idle makes room for a new one.",
            "2048",
            also=("max_connections",),
        ),
        Key(
            "connections_per_address",
            Whole(1, 65_536),
            "Of these, those of one address (of IPv6: of one /64), or of one user on a socket; this machine's "
            "addresses and root are exempt.",
            "512",
            also=("per_address", "connections_per_ip"),
        ),
        Key(
            "header_timeout",
            Duration(0.1, 3600),
            "How long a header may take from its first byte to its last.",
            "10",
            field="header_s",
        ),
        Key("body_timeout", Duration(0.1, 3600), "How long a body may pause.", "30", field="body_s"),
        Key(
            "idle_timeout",
            Duration(0.1, 86400),
            "How long a connection is kept for a next request.",
            "75",
            field="idle_s",
            also=("keep_alive", "keepalive_timeout"),
        ),
        Key(
            "write_timeout",
            Duration(0.1, 86400),
            "How long a client may take nothing of its answer.",
            "60",
            field="write_s",
            also=("send_timeout",),
        ),
        Key(
            "answer_timeout",
            Duration(1, 86400),
            "How long an engine may say nothing in the middle of an answer that it has begun; before its first word it "
            "may think as long as it likes.",
            "600",
            field="answer_s",
            also=("stall_timeout", "proxy_read_timeout"),
        ),
    )
)

HTTP = Section(
    (
        Key("front", _door("8080"), "The door for clients."),
        Key("management", _door("9000"), "The management API."),
        Key("ollama", _door("11434"), "The door for Ollama's clients."),
        Key(
            "api_keys_file",
            FilePath(),
            "The file of the keys that let clients in; `gpudctl key add NAME` makes one. Read at the start and by "
            "`gpudctl reload`.",
            absent="no keys: only this machine comes in",
            also=("api_keys", "apikeys", "keys_file", "keys"),
            example="/etc/gpud/keys.yaml",
        ),
        Key(
            "without_key",
            Choice(("all", "use", "none")),
            "What clients of this machine may do by TCP without a key: all, use models, or nothing. Behind a reverse "
            "proxy everybody looks like one of them.",
            absent="all without `api_keys_file`, none with it",
            also=("anonymous", "require_key"),
            example="use",
        ),
        Key(
            "rate",
            RateOf(),
            "Requests that each key may make, unless the keys file says otherwise for it.",
            absent="no limit",
            also=("rate_limit", "rpm"),
            example="60/min",
        ),
        Key(
            "rate_without_key",
            RateOf(),
            "Requests that each address, or each user on a socket, may make without a key.",
            absent="no limit",
            example="600/min",
        ),
        Key("tls", TLS, "TLS for all TCP addresses.", also=("ssl",)),
        Key(
            "allowed_hosts",
            Several("a list of host names", allowed_host),
            "Names by which clients reach gpud, beside localhost and the addresses that it listens on; other requests "
            "are refused, for a stranger's web page could have sent them.",
            "[]",
            also=("hosts", "server_name", "trusted_hosts", "server_names"),
        ),
        Key(
            "cors_origins",
            Several("a list of origins like http://localhost:5000; * for all, where there are no keys", origin),
            "Origins whose web pages may use gpud in a browser. Other pages' requests are refused.",
            "[]",
            also=("cors", "origins", "allowed_origins", "cors_allowed_origins"),
        ),
        Key(
            "default_model",
            Text("the name of a model, or an alias", MODEL_NAME, any_scalar=True),
            "Which model the name default means.",
            absent="the one that was used last, or else the first",
            example="tiny",
        ),
        Key(
            "heartbeat",
            Duration(1, 3600, never=True),
            "How often the client of a stream is told that it still waits, while its model loads.",
            "10",
            field="heartbeat_s",
            also=("keepalive", "ping"),
        ),
        Key("limits", HTTP_LIMITS, "What each door grants its clients."),
    )
)

SESSIONS = Section(
    (
        Key(
            "unload_on_exit",
            Flag(),
            "When a shell that has registered ends, unload what nobody else has used.",
            "true",
            also=("unload_on_shell_exit", "unloadOnShellExit"),
        ),
        Key(
            "grace",
            Duration(0, 86400),
            "How long after its end that happens; whoever uses a model meanwhile keeps it.",
            "5",
            field="grace_s",
        ),
    )
)

BUS = Section(
    (
        Key("jobs", Whole(1, 10_000), "Jobs that one caller may have.", "16"),
        Key("holds", Whole(1, 10_000), "Holds that one caller may have.", "16"),
        Key("calls", Whole(1, 10_000), "Unanswered calls that one caller may have.", "64"),
    )
)

MODELS = Named(MODEL, "model", lambda name, _: check_model_name_or_pattern(name))
ENGINES = Named(ENGINE, "engine", check_engine)

ROOT = Section(
    (
        Key(
            "models",
            MODELS,
            "The models, each under the name that clients ask for. An entry that has neither file, model, command, "
            "url, directory nor engine says how the model is treated that is found under its name; a pattern (like "
            "qwen*), how several are.",
            also=("model",),
        ),
        Key("defaults", DEFAULTS, "What every model has unless it, or its engine's defaults, say otherwise."),
        Key("engines", ENGINES, "What all models of one engine share.", also=("backends", "engine")),
        Key("idle", IDLE, "Idleness."),
        Key("storage", STORAGE, "Where models are kept."),
        Key(
            "registry",
            REGISTRY,
            "Where gpud looks for models that are not listed here.",
            also=("catalogue", "catalog"),
        ),
        Key("gpu", GPU, "How much memory gpud may take.", also=("vram", "gpus", "limits")),
        Key("queue", QUEUE, "The queue for memory."),
        Key("eviction", EVICTION, "Which models are evicted when memory is needed.", also=("auto_scaling",)),
        Key("scheduler", SCHEDULER, "Which engine serves a model that several could serve."),
        Key("alerts", ALERTS, "Where alerts go when a GPU is nearly full.", also=("alert", "notifications")),
        Key("prefetch", PREFETCH, "What gpud does ahead of time.", also=("warm",)),
        Key("suspend", SUSPEND, "What happens when the machine sleeps.", also=("sleep",)),
        Key(
            "give_way",
            GIVE_WAY,
            "Games and other programs that get the GPUs for themselves.",
            also=("gamemode", "yield"),
        ),
        Key("stop", STOP, "How engines are stopped."),
        Key("restart", RESTART, "What happens after an engine crashed.", also=("backoff",)),
        Key(
            "memory_wait",
            Duration(),
            "How long a load waits for memory that a stopped engine should have given back.",
            "10",
            field="memory_wait_s",
        ),
        Key(
            "shutdown_drain",
            Duration(0, 3600),
            "How long running requests may take when gpud ends.",
            "20",
            field="shutdown_drain_s",
        ),
        Key("logging", LOGGING, "What is logged.", also=("log",)),
        Key(
            "http",
            HTTP,
            "Where gpud listens, and who has access.",
            also=("server",),
        ),
        Key("sessions", SESSIONS, "What happens when a shell or a login session ends.", also=("session", "shells")),
        Key("bus", BUS, "What one caller on D-Bus may have at the same time."),
    )
)


def sections() -> Iterator[tuple[str, Section]]:
    """Every section with its path as the manual writes it, outermost first."""
    yield "the top level", ROOT
    yield "models.NAME", MODEL
    yield "models.NAME.unload", UNLOAD
    yield "models.NAME.busy", BUSY
    yield "engines.NAME", ENGINE
    for key in ROOT.keys:
        if isinstance(key.kind, Section) and key.kind is not DEFAULTS:
            yield key.name, key.kind
            for inner in key.kind.keys:
                if isinstance(inner.kind, Section):
                    yield f"{key.name}.{inner.name}", inner.kind


def places(name: str) -> list[str]:
    """The sections that have a key of this name."""
    return [place for place, section in sections() if any(key.name == name for key in section.keys)]


def ours(name: str) -> str:
    """The one key that other programs call so, as a whole path; empty where there is none, or more than one."""
    found = [
        f"{place}.{key.name}"
        for place, section in sections()
        if section is not ROOT
        for key in section.keys
        if name in key.also
    ]
    return found[0] if len(found) == 1 else ""
