"""llama-server's flags: which ones the installed build knows, and the command line for one model.

llama.cpp renames, adds and removes flags every few weeks, so nothing is assumed: what ``--help`` lists is what is used.
A setting that the user asked for and the build does not know is an error; what gpud adds for itself is left out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Self

from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model
from gpud.core.record import Record, field

DEFAULT_CONTEXT = 4096
"""What a model without a configured context gets; the engine's own default is all that the model was trained with,
which can be a hundred GiB."""

PROMPT_CACHE_MIB = 512
"""Host memory for prompts of conversations that lost their slot; the engine's own default is 8 GiB, which no budget
would know of."""

ALL_LAYERS = "999"
"""For builds from before ``all``: more layers than any model has."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OWNED = _words(
    "-m --model --host --port --api-key --api-key-file -a --alias --models-dir --models-preset --models-max "
    "-hf -hfr --hf-repo -hff --hf-file -mu --model-url -dr --docker-repo --sleep-idle-seconds --log-disable --log-file "
    "--log-jsonl --no-slots --ssl-key-file --ssl-cert-file --api-prefix --reuse-port"
)
"""Flags that gpud sets itself or that would take the engine out of its hands."""

DANGEROUS = _words(
    "--tools --tools-runtime -ag --agent --mcp-servers-config --mcp-servers-json --ui-mcp-proxy --webui-mcp-proxy "
    "--slot-save-path --media-path --path --rpc"
)
"""Flags that let a client of the engine read files or start programs."""

DANGEROUS_ENVIRONMENT = re.compile(
    r"^LLAMA_(API_KEY|SERVER_ROUTER_PORT|ARG_(TOOLS|AGENT|MCP_|UI_MCP|WEBUI_MCP|API_KEY|HOST|PORT|MODEL|MEDIA_PATH|SLOT_SAVE"
    r"|STATIC_PATH|RPC|LOG_JSONL|HF_|DOCKER))"
)

_NAME = re.compile(r"(--?[A-Za-z][\w.-]*)(,\s*|\s+|$)")


class Flag(Record):
    """One line of the help: all its names, the placeholder of its value (empty: a switch), what it says."""

    names: tuple[str, ...]
    value: str
    text: str


class Flags(Record):
    """What one build understands."""

    by_name: Mapping[str, Flag] = field(default_factory=dict)

    @classmethod
    def parse(cls, help_text: str) -> Self:
        """Read the text of ``--help``, old style or new."""
        by_name: dict[str, Flag] = {}
        head = ""
        texts: list[str] = []

        def finish() -> None:
            if head:
                flag = _read_flag(head, texts)
                by_name.update((name, flag) for name in flag.names)

        for line in help_text.splitlines():
            if re.match(r" {0,2}-{1,2}[A-Za-z]", line):
                finish()
                head, texts = line.strip(), []
            elif head:
                texts.append(line.strip())
        finish()
        return cls(by_name)

    def __bool__(self) -> bool:
        return bool(self.by_name)

    def first(self, *names: str) -> str:
        """The first of ``names`` that the build knows, or empty."""
        return next((name for name in names if name in self.by_name), "")

    def says(self, name: str, word: str) -> bool:
        """True when the help of a flag contains a word."""
        flag = self.by_name.get(name)
        return flag is not None and word.lower() in f"{flag.value} {flag.text}".lower()

    def takes_value(self, name: str) -> bool:
        return bool(self.by_name[name].value)


def _read_flag(head: str, texts: Sequence[str]) -> Flag:
    names: list[str] = []
    position = 0
    gap = ""
    while match := _NAME.match(head, position):
        names.append(match[1])
        position = match.end()
        gap = match[2]
        if not gap.startswith(","):
            break
    rest = head[position:]
    # One space before a placeholder, two and more before the description.
    value = ""
    if len(gap) == 1 and not gap.startswith(","):
        value, _, rest = rest.partition("  ")
    return Flag(tuple(names), value.strip(), " ".join([rest.strip(), *texts]))


class Place(Record):
    """Where the engine listens and which memory it may use.

    ``split`` is each GPU's part of the layers, where there are several. ``tells`` has the engine print what it is about
    to allocate before it reads a weight.
    """

    socket: str = ""
    port: int = 0
    on_gpu: bool = True
    split: tuple[float, ...] = ()
    tells: bool = False


def check_settings(model: Model) -> None:
    """Raises BackendFailed(preflight) for what no user may set on an engine that gpud answers for."""
    for item in model.settings.extra_flags:
        name = item.partition("=")[0]
        if name in OWNED:
            raise _refused(model, f"extra_flags sets {name}, which gpud sets itself", "take it out of extra_flags")
        if name in DANGEROUS:
            why = "lets clients of the engine reach files or programs of this machine"
            raise _refused(model, f"extra_flags sets {name}, which {why}", "take it out of extra_flags")
    check_environment(model, model.settings.environment)


def check_environment(model: Model, environment: Sequence[tuple[str, str]]) -> None:
    """The same for variables, of the model or of its engine."""
    for name, _ in environment:
        if DANGEROUS_ENVIRONMENT.match(name):
            raise _refused(model, f"environment sets {name}, which gpud decides", "take it out of environment")


def _refused(model: Model, what: str, hint: str) -> BackendFailed:
    return BackendFailed(f'cannot load "{model.name}": {what}', hint=hint, kind="bad-flag", preflight=True)


def command_line(binary: Sequence[str], model: Model, file: str, place: Place, flags: Flags) -> tuple[str, ...]:
    """The complete argv. Raises BackendFailed(preflight) for a setting that this build cannot follow."""
    line = _Line(" ".join(binary), model, flags)
    settings = model.settings
    line.need(file, "file", "--model", "-m")
    # Of several names a llama-server answers with the first of the alphabet; the doors know the aliases by themselves.
    line.offer(model.name, "--alias", "-a")
    line.need(place.socket or "127.0.0.1", "host", "--host")
    if not place.socket:
        line.need(str(place.port), "port", "--port")
    line.need(str(settings.context or DEFAULT_CONTEXT), "context", "--ctx-size", "-c")
    _add_layers(line, settings, place)
    _add_numbers(line, settings)
    _add_attention(line, settings)
    _add_files(line, settings)
    if settings.embeddings:
        line.switch("embeddings", "--embeddings", "--embedding")
    if settings.reranking:
        line.switch("reranking", "--reranking", "--rerank")
    _add_own(line)
    return (*binary, *line.argv, *settings.extra_flags)


class _Line:
    """Collects arguments that the build knows."""

    def __init__(self, binary: str, model: Model, flags: Flags) -> None:
        self.binary = binary
        self.model = model
        self.flags = flags
        self.argv: list[str] = []

    def need(self, value: str | int | None, setting: str, *names: str) -> None:
        """Set a value if there is one; the build has to know one of the flag's names."""
        if value is None or value == "":
            return
        self.argv += [self._known(setting, *names), str(value)]

    def switch(self, setting: str, *names: str) -> None:
        self.argv.append(self._known(setting, *names))

    def offer(self, value: str, *names: str) -> None:
        """Set a value, or a switch where ``value`` is empty, if the build knows it."""
        name = self.flags.first(*names)
        if name:
            self.argv += [name, value] if value else [name]

    def _known(self, setting: str, *names: str) -> str:
        name = self.flags.first(*names)
        if name:
            return name
        raise BackendFailed(
            f'cannot load "{self.model.name}": {self.binary} does not know {names[0]}, which {setting} asks for',
            hint=f"install a newer build of the engine, or take {setting} out of the configuration",
            kind="bad-flag",
            preflight=True,
        )


def _add_layers(line: _Line, settings: EngineSettings, place: Place) -> None:
    # The engine's own fitting would take what others were promised. It is also what tells; with context and layers
    # pinned it changes nothing.
    line.offer("on" if place.tells else "off", "--fit", "-fit")
    # Level 4 tells it, and no prompts; but also, after each answer, which prompts are cached, a line for each: that is
    # not for every start. Builds without named levels tell the sizes always.
    if place.tells and line.flags.says("--verbosity", "4: trace"):
        line.offer("4", "--verbosity", "-lv")
    name = line.flags.first("--gpu-layers", "--n-gpu-layers", "-ngl")
    if not place.on_gpu:
        line.offer("0", "--gpu-layers", "--n-gpu-layers", "-ngl")
        line.offer("none", "--device", "-dev")
    else:
        layers = settings.layers or "auto"
        if layers in ("-1", "all") or (layers == "auto" and place.tells):
            layers = "all"
        if layers in ("auto", "all") and not line.flags.says(name, f"'{layers}'"):
            layers = ALL_LAYERS
        line.need(layers, "layers", "--gpu-layers", "--n-gpu-layers", "-ngl")
        if len(place.split) > 1:
            line.need(",".join(f"{share:g}" for share in place.split), "several GPUs", "--tensor-split", "-ts")
        line.need(settings.cpu_moe, "n_cpu_moe", "--n-cpu-moe", "-ncmoe")
        line.need(settings.override_tensor, "override_tensor", "--override-tensor", "-ot")


def _add_numbers(line: _Line, settings: EngineSettings) -> None:
    line.need(settings.threads, "threads", "--threads", "-t")
    line.need(settings.parallel, "parallel", "--parallel", "-np")
    line.need(settings.batch, "batch", "--batch-size", "-b")
    line.need(settings.micro_batch, "micro_batch", "--ubatch-size", "-ub")
    if settings.continuous_batching is not None:
        on = settings.continuous_batching
        names = ("--cont-batching", "-cb") if on else ("--no-cont-batching", "-nocb")
        line.switch("continuous_batching", *names)


def _add_attention(line: _Line, settings: EngineSettings) -> None:
    line.need(settings.cache_type_k, "cache_type_k", "--cache-type-k", "-ctk")
    line.need(settings.cache_type_v, "cache_type_v", "--cache-type-v", "-ctv")
    wanted = settings.flash_attention
    if wanted is None:
        return
    name = line.flags.first("--flash-attn", "-fa")
    if name and not line.flags.takes_value(name):
        # Old builds have a bare switch, off unless it is given.
        if wanted == "on":
            line.argv.append(name)
        return
    line.need(wanted, "flash_attention", "--flash-attn", "-fa")


def _add_files(line: _Line, settings: EngineSettings) -> None:
    line.need(settings.mmproj, "mmproj", "--mmproj", "-mm")
    if settings.draft_file:
        line.need(settings.draft_file, "draft_file", "--model-draft", "--spec-draft-model", "-md")
        # Newer builds ignore a draft model until they are told what to do with it.
        line.offer("draft-simple", "--spec-type")
    if settings.chat_template.startswith("/"):
        line.need(settings.chat_template, "chat_template", "--chat-template-file")
    else:
        line.need(settings.chat_template, "chat_template", "--chat-template")


def _add_own(line: _Line) -> None:
    """What gpud wants for itself: no network, no pages, and figures."""
    line.offer("", "--offline")
    line.offer("", "--no-ui", "--no-webui")
    line.offer("", "--metrics")
    line.offer("", "--slots")
    line.offer(str(PROMPT_CACHE_MIB), "--cache-ram", "-cram")
