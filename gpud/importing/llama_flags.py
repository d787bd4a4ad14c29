"""What the flags of llama-server are here: those that gpud has keys for, those that it sets itself, and the rest.

The spellings of old and new builds are known alike; a flag that is given twice counts as it does there, the last one.
"""

import re
from collections.abc import Callable, Sequence

from gpud.config.forbidden import check_flag
from gpud.config.kinds import Wrong
from gpud.config.source import Where
from gpud.core.record import Record, Struct, field
from gpud.importing.commands import is_value
from gpud.importing.report import Draft, Path, shown
from gpud.importing.secrets import names_secret
from gpud.importing.values import path_of, put_gpu, put_path, stem, words

ALL_LAYERS = 99
"""Whoever writes 99 or more means all of them."""

MODELS = "/var/lib/ml-models/llamacpp/models"
"""Where gpudctl pull puts a file of the machine's gpud, unless it is told otherwise."""


class _Parse(Struct):
    """One command line that is being read."""

    draft: Draft
    path: Path
    where: Where
    setting: str
    contained: bool
    hub: str
    single: bool = False
    extra: list[str] = field(default_factory=list)
    extra_from: dict[str, tuple[Where, list[str]]] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    later: dict[str, "_Later"] = field(default_factory=dict)

    def said(self, flag: str) -> str:
        return self.setting if self.single else f"{self.setting} {flag}"

    def put(self, key: str, value: object, flag: str, why: str = "", *, changed: bool = False) -> None:
        self.draft.put((*self.path, key), value, self.where, self.said(flag), why=why, changed=changed)

    def leave(self, flag: str, why: str, instead: str = "") -> None:
        self.draft.leave(self.where, self.said(flag), why, instead)

    def spare(self, flag: str, why: str) -> None:
        self.draft.spare(self.where, self.said(flag), why)

    def pass_on(self, *words: str) -> None:
        """What gpud has no key for."""
        self.extra += words
        _, flags = self.extra_from.setdefault(self.setting, (self.where, []))
        if not self.single:
            flags.append(words[0])


class _Later(Record):
    """A value whose meaning depends on what else is said."""

    value: str
    where: Where
    setting: str


_Handler = Callable[[_Parse, str, str], None]


def _file(key: str) -> _Handler:
    def handle(parse: _Parse, flag: str, value: str) -> None:
        place = (*parse.path, key)
        put_path(parse.draft, place, value, parse.where, parse.said(flag), contained=parse.contained)

    return handle


def _whole(key: str, least: int, otherwise: str) -> _Handler:
    """A whole number; ``otherwise`` says what it means here when it is less than ``least``."""

    def handle(parse: _Parse, flag: str, value: str) -> None:
        if not re.fullmatch(r"[-+]?[0-9]{1,15}", value):
            parse.leave(f"{flag} {shown(value)}", "it is not a whole number", f"write {key}: and a number")
        elif int(value) < least:
            parse.leave(f"{flag} {value}", otherwise, f"write {key}: and a number, where that is not enough")
        else:
            parse.put(key, int(value), flag)

    return handle


def _layers(parse: _Parse, flag: str, value: str) -> None:
    if value in ("auto", "all"):
        parse.put("layers", value, flag)
    elif re.fullmatch(r"-[0-9]+", value):
        parse.put("layers", "all", flag, f"{value} means all")
    elif value.isdecimal() and len(value) < 12:
        layers = int(value)
        all_of_them = layers >= ALL_LAYERS
        parse.put("layers", "all" if all_of_them else layers, flag, f"{layers} means all" if all_of_them else "")
    else:
        parse.leave(f"{flag} {shown(value)}", "it is no number of layers", "write layers: auto, all or a number")


def _word(key: str) -> _Handler:
    def handle(parse: _Parse, flag: str, value: str) -> None:
        parse.put(key, value.lower(), flag)

    return handle


def _switch(key: str, value: object, why: str = "") -> _Handler:
    def handle(parse: _Parse, flag: str, _: str) -> None:
        parse.put(key, value, flag, why)

    return handle


_SWITCHED = {"1": "on", "true": "on", "enabled": "on", "0": "off", "false": "off", "disabled": "off", "-1": "auto"}


def _flash(parse: _Parse, flag: str, value: str) -> None:
    parse.put("flash_attention", _SWITCHED.get(value.lower(), value.lower()) if value else "on", flag)


def _override(parse: _Parse, _: str, value: str) -> None:
    parse.overrides.append(value)


def _template_file(parse: _Parse, flag: str, value: str) -> None:
    _file("chat_template")(parse, flag, value)


def _aliases(parse: _Parse, flag: str, value: str) -> None:
    for name in value.split(","):
        if name.strip():
            parse.draft.alias(parse.path, name.strip(), parse.where, parse.said(flag))


def _remember(what: str) -> _Handler:
    def handle(parse: _Parse, flag: str, value: str) -> None:
        parse.later[what] = _Later(value, parse.where, parse.said(flag))

    return handle


def _idle(parse: _Parse, flag: str, value: str) -> None:
    if not re.fullmatch(r"-?[0-9]{1,9}", value):
        parse.leave(f"{flag} {shown(value)}", "it is no number of seconds", "write idle_timeout: and a time")
    elif int(value) > 0:
        parse.put("idle_timeout", int(value), flag)
    else:
        parse.spare(flag, "it says that the engine does not go to sleep, and gpud never lets it")


def _needless(why: str) -> _Handler:
    def handle(parse: _Parse, flag: str, _: str) -> None:
        parse.spare(flag, why)

    return handle


def _dropped(why: str, instead: str = "") -> _Handler:
    def handle(parse: _Parse, flag: str, _: str) -> None:
        parse.leave(flag, why, instead)

    return handle


def _secret(why: str, instead: str) -> _Handler:
    def handle(parse: _Parse, flag: str, value: str) -> None:
        parse.draft.secrets.hide(value)
        parse.leave(flag, why, instead)

    return handle


def _split(parse: _Parse, flag: str, value: str) -> None:
    if value in ("none", "layer"):
        parse.spare(f"{flag} {value}", "gpud puts a model on one GPU where it fits, and else on several")
    else:
        parse.pass_on(flag, value)


_LOG = "gpud reads the engine's log and passes it to the journal, in a form of its choice"
_PRIVATE = "gpud listens for the engine on a private address"
_MAKES = "gpud makes a key for every start; those of clients are made with gpudctl key add NAME"
_FITS = "gpud does the fitting, with layers: auto and least_context"

# Whether a value follows: always, never, or where the next word can be one.
_ALWAYS, _NEVER, _MAYBE = "always", "never", "maybe"

_TABLE: tuple[tuple[str, str, _Handler], ...] = (
    ("-m --model", _ALWAYS, _file("file")),
    ("-c --ctx-size", _ALWAYS, _whole("context", 16, "0 is all that the model was trained with; gpud takes 4096")),
    ("-ngl --gpu-layers --n-gpu-layers", _ALWAYS, _layers),
    ("-t --threads", _ALWAYS, _whole("threads", 1, "the engine decides, as it does here by itself")),
    ("-np --parallel", _ALWAYS, _whole("parallel", 1, "the engine would decide; gpud takes 1")),
    ("-b --batch-size", _ALWAYS, _whole("batch", 1, "it is not a size of a batch")),
    ("-ub --ubatch-size", _ALWAYS, _whole("micro_batch", 1, "it is not a size of a batch")),
    ("-ctk --cache-type-k", _ALWAYS, _word("cache_type_k")),
    ("-ctv --cache-type-v", _ALWAYS, _word("cache_type_v")),
    ("-fa --flash-attn", _MAYBE, _flash),
    ("-cb --cont-batching", _NEVER, _switch("continuous_batching", True)),
    ("-nocb --no-cont-batching", _NEVER, _switch("continuous_batching", False)),
    ("-ncmoe --n-cpu-moe", _ALWAYS, _whole("cpu_moe", 0, "it is not a number of layers")),
    ("-cmoe --cpu-moe", _NEVER, _switch("cpu_moe", 999, "the experts of all layers")),
    ("-ot --override-tensor", _ALWAYS, _override),
    ("-mm --mmproj", _ALWAYS, _file("mmproj")),
    ("-md --model-draft --spec-draft-model", _ALWAYS, _file("draft_file")),
    ("--chat-template", _ALWAYS, lambda parse, flag, value: parse.put("chat_template", value, flag)),
    ("--chat-template-file", _ALWAYS, _template_file),
    ("--embedding --embeddings", _NEVER, _switch("embeddings", True)),
    ("--rerank --reranking", _NEVER, _switch("reranking", True)),
    ("-a --alias --model-alias", _ALWAYS, _aliases),
    ("--sleep-idle-seconds", _ALWAYS, _idle),
    ("-fitc --fit-ctx", _ALWAYS, _whole("least_context", 16, "it is not a context")),
    ("-fit --fit", _MAYBE, _needless(_FITS)),
    ("-fitt --fit-target", _ALWAYS, _dropped(_FITS, "gpu.reserve is what is left free for others")),
    ("-dev --device", _ALWAYS, _remember("devices")),
    ("-mg --main-gpu", _ALWAYS, _remember("main_gpu")),
    ("-ts --tensor-split", _ALWAYS, _dropped("gpud decides how a model is spread over GPUs, by what is free there")),
    ("-sm --split-mode", _ALWAYS, _split),
    ("-hf -hfr --hf-repo", _ALWAYS, _remember("repository")),
    ("-hff --hf-file", _ALWAYS, _remember("repository_file")),
    ("-mu --model-url", _ALWAYS, _remember("url")),
    ("-dr --docker-repo", _ALWAYS, _dropped("gpud gets no models from Docker's registry", "write file: and its path")),
    ("-hft --hf-token", _ALWAYS, _secret("a secret, and gpud never downloads", "gpudctl pull takes HF_TOKEN")),
    (
        "-hfd -hfrd --hf-repo-draft --spec-draft-hf -mmu --mmproj-url",
        _ALWAYS,
        _dropped("gpud downloads nothing when a model is loaded", "get the file, and write draft_file: or mmproj:"),
    ),
    ("--host --port --api-prefix --ssl-key-file --ssl-cert-file", _ALWAYS, _needless(_PRIVATE)),
    ("--reuse-port", _NEVER, _needless(_PRIVATE)),
    ("--api-key --api-key-file", _ALWAYS, _secret(_MAKES, "gpudctl key add NAME")),
    ("--metrics --slots --no-slots --props --offline", _NEVER, _needless("gpud says so to the engine by itself")),
    ("--ui --webui --no-ui --no-webui", _NEVER, _needless("the engine shows no pages; gpud's door has its own")),
    ("--log-disable --log-jsonl --no-log-jsonl --log-prefix --no-log-prefix", _NEVER, _needless(_LOG)),
    ("--log-timestamps --no-log-timestamps --log-enable", _NEVER, _needless(_LOG)),
    ("--log-file --log-format", _ALWAYS, _needless(_LOG)),
    ("--log-colors", _MAYBE, _needless(_LOG)),
    ("-lv --verbosity --log-verbosity", _ALWAYS, _needless(_LOG)),
    ("-v --verbose --log-verbose", _NEVER, _dropped("the engine would write prompts into the journal")),
    ("--log-prompts-dir", _ALWAYS, _dropped("gpud keeps no prompts, and has no engine keep them")),
    ("--no-agent -no-ag --no-ui-mcp-proxy --no-webui-mcp-proxy", _NEVER, _needless("gpud never allows any of it")),
    ("--models-autoload --no-models-autoload", _NEVER, _needless("gpud decides which models are loaded")),
    ("-dt --defrag-thold", _ALWAYS, _needless("it does nothing any more")),
    ("--jinja", _NEVER, _needless("builds of today use the model's template by themselves")),
    (
        "--cors-origins --cors-methods --cors-headers",
        _ALWAYS,
        _dropped("pages reach gpud and not the engine", "http.cors_origins has the pages that may"),
    ),
    ("--cors-credentials --no-cors-credentials", _NEVER, _needless("pages reach gpud and not the engine")),
)

_RULES: dict[str, tuple[str, _Handler]] = {
    name: (takes, handler) for names, takes, handler in _TABLE for name in names.split()
}

_RENAMED = {
    "--mlock": "--load-mode mlock",
    "--no-mmap": "--load-mode none",
    "--mmap": "--load-mode mmap",
    "--draft": "--spec-draft-n-max",
    "--draft-n": "--spec-draft-n-max",
    "--draft-max": "--spec-draft-n-max",
    "--draft-min": "--spec-draft-n-min",
    "--draft-n-min": "--spec-draft-n-min",
}
"""What builds since autumn 2026 refuse, and call so."""

_PATHS = words(
    "--lora --control-vector --grammar-file -jf --json-schema-file -lcs --lookup-cache-static -lcd "
    "--lookup-cache-dynamic"
)
"""Flags that gpud has no keys for and whose values are files."""

_SHARES = {"--lora-scaled", "--control-vector-scaled"}


class Part(Record):
    """Arguments, where they stand, and what a note calls that. ``single``: it names one setting, not a command."""

    where: Where
    setting: str
    arguments: Sequence[str]
    single: bool = False


def translate(draft: Draft, path: Path, parts: Sequence[Part], *, contained: bool = False, hub: str = "") -> None:
    """Put what the arguments say below ``path``; later parts count. ``contained``: their paths are a container's;
    ``hub``: the cache into which llama-server downloaded, where that was said.

    Whether the model has a file afterwards is for the caller to see.
    """
    parse = _Parse(draft, path, Where("", 0), "", contained, hub)
    for part in parts:
        parse.where, parse.setting, parse.single = part.where, part.setting, part.single
        _read(parse, list(part.arguments))
    if parts:
        _finish(parse)


def _read(parse: _Parse, given: list[str]) -> None:
    index = 0
    while index < len(given):
        word = given[index]
        flag, equals, joined = word.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        following = given[index + 1] if index + 1 < len(given) else ""
        has_value = index + 1 < len(given) and is_value(following)
        rule = _RULES.get(flag) if word.startswith("-") else None
        if rule is None:
            index += _unknown(parse, flag if not equals else word, given, index, has_value=has_value)
            continue
        takes, handler = rule
        if equals and takes != _NEVER:
            handler(parse, flag, joined)
            index += 1
        elif takes == _ALWAYS:
            if index + 1 == len(given):
                parse.leave(flag, "its value is missing", "mend it")
            else:
                handler(parse, flag, following)
            index += 2
        else:
            value = following if takes == _MAYBE and has_value else ""
            handler(parse, flag, value)
            index += 2 if value else 1


def _unknown(parse: _Parse, flag: str, given: list[str], index: int, *, has_value: bool) -> int:
    """Pass on a flag that gpud has no key for, with what follows it; gives back how many words that were."""
    count = 2 if has_value and flag.startswith("-") else 1
    value = given[index + 1] if count == 2 else ""
    if not flag.startswith("-"):
        parse.leave(shown(flag), "it belongs to no flag")
        return count
    if re.fullmatch(r"--(embd|fim|gpt-oss|vision)-[a-z0-9.-]+-(default|spec)", flag):
        parse.leave(flag, "it names models that the engine would download; gpud downloads nothing", "gpudctl pull")
        return 1
    try:
        check_flag(flag)
        if names_secret(flag) or value in parse.draft.secrets:
            raise Wrong("is a secret by its name, and secrets are never copied")
    except Wrong as wrong:
        parse.draft.secrets.hide(value if names_secret(flag) else "")
        parse.leave(flag.partition("=")[0], f"it {wrong}")
        return count
    if flag in _RENAMED:
        parse.remarks.append(f"newer builds of llama.cpp refuse {flag} and call it {_RENAMED[flag]}")
    if flag in _PATHS:
        value = path_of(parse.draft, value).path
    elif flag in _SHARES:
        name, colon, share = value.rpartition(":")
        value = f"{path_of(parse.draft, name).path}{colon}{share}" if colon else value
    parse.pass_on(*([flag, value] if count == 2 else [flag]))
    return count


def _finish(parse: _Parse) -> None:
    if parse.overrides:
        parse.put("override_tensor", ",".join(parse.overrides), "--override-tensor")
    chosen = parse.later.get("devices") or parse.later.get("main_gpu")
    if chosen is not None and "devices" in parse.later and "main_gpu" in parse.later:
        other = parse.later["main_gpu"]
        parse.draft.spare(other.where, other.setting, "the devices are named")
    if chosen is not None:
        named = re.sub(r"(?i)\b(CUDA|ROCm|HIP|Vulkan)(?=[0-9])", "", chosen.value)
        put_gpu(parse.draft, (*parse.path, "gpu"), named, chosen.where, chosen.setting)
    if parse.extra:
        why = "; ".join(parse.remarks)
        setting = ", ".join(" ".join([one, *flags]) for one, (_, flags) in parse.extra_from.items())
        first, _ = next(iter(parse.extra_from.values()))
        place = (*parse.path, "extra_flags")
        parse.draft.put(place, parse.extra, first, setting, why=why, changed=bool(why))
    if parse.draft.get((*parse.path, "file")) is None:
        _place_download(parse)
        return
    for what in ("url", "repository", "repository_file"):
        if what in parse.later:
            one = parse.later[what]
            parse.draft.spare(one.where, one.setting, "the file is named")


def mention_context(draft: Draft, path: Path, where: Where, setting: str) -> None:
    """Say it where nothing is said of a context: the engine and gpud differ about what that means."""
    if draft.get((*path, "context")) is None and draft.get(path) is not None:
        why = "llama-server takes all that the model was trained with then, and gpud takes 4096 tokens"
        draft.leave(where, f"{setting} without a context", why, f'write a context below "{path[1]}"')


_EXPECTED = "gpud downloads nothing when a model is loaded: the file is expected here"


def _place_download(parse: _Parse) -> None:
    """llama-server would download these by itself; gpud finds them where its own commands put them."""
    file = (*parse.path, "file")
    url, repository = parse.later.get("url"), parse.later.get("repository")
    if url is not None:
        name = re.sub(r"[?#].*$", "", url.value).rsplit("/", 1)[-1] or "model.gguf"
        target = f"{MODELS}/{name}"
        parse.draft.put(file, target, url.where, url.setting, why=_EXPECTED, changed=True)
        return
    if repository is None:
        return
    match = re.fullmatch(r"([\w.-]+)/([\w.-]+?)(?::([\w.-]+))?", repository.value)
    if match is None:
        said = f"{repository.setting} {shown(repository.value)}"
        parse.draft.leave(repository.where, said, "it is no name at Hugging Face", "write file: and a path")
        return
    owner, name = match[1], match[2]
    named = parse.later.get("repository_file")
    guess = named.value if named else f"{re.sub(r'(?i)[-_.]gguf$', '', name)}-{match[3] or 'Q4_K_M'}.gguf"
    why = _EXPECTED if named else f"{_EXPECTED}, and its name is a guess by the repository's"
    which = f"/{guess}" if named else f":{match[3]}" if match[3] else ""
    pull = f"gpudctl pull hf:{owner}/{name}{which}"
    if parse.hub:
        target = f"{parse.hub}/models--{owner}--{name}/snapshots/latest/{guess}"
        instead = f"where it is not there: {pull}, and the path that this says"
    else:
        target, instead = f"{MODELS}/{guess.rpartition('/')[2]}", pull
    parse.draft.put(file, target, repository.where, repository.setting, why=why, instead=instead, changed=True)


def name_in(arguments: Sequence[str]) -> str:
    """What a model with these arguments may be called, by its file; empty where they name none."""
    for index, word in enumerate(arguments[:-1]):
        if word in ("-m", "--model", "-hff", "--hf-file", "-mu", "--model-url"):
            return stem(arguments[index + 1])
        if word in ("-hf", "-hfr", "--hf-repo"):
            return stem(arguments[index + 1].partition(":")[0])
    return ""
