"""The models of llama-swap: what their commands start decides which engine serves them here."""

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from gpud.config.network import is_loopback
from gpud.config.source import Items, Scalar, Table, Where
from gpud.core.record import Record
from gpud.importing import hub_flags, llama_flags, llama_variables
from gpud.importing.commands import Command, Program, split, understand, without_comments, without_secrets
from gpud.importing.fields import Fields
from gpud.importing.macros import PORT, Macros, read_macros
from gpud.importing.reading import unreadable
from gpud.importing.report import Draft, Path, shown
from gpud.importing.secrets import names_secret
from gpud.importing.values import VISIBLE, Place, path_of, put_environment, put_gpu

_SIZE_UNKNOWN = "gpud cannot find out what it needs, and 0 takes none of the budget"
_SIZE_HINT = "write what it needs, like 8GiB"

_ENGINES = {
    Program.LLAMA_SERVER: "llama_server",
    Program.LLAMA_CPP_PYTHON: "llama_cpp",
    Program.VLLM: "vllm",
    Program.TGI: "tgi",
}
_FLAGS = {
    Program.LLAMA_CPP_PYTHON: hub_flags.LLAMA_CPP_PYTHON,
    Program.VLLM: hub_flags.VLLM,
    Program.TGI: hub_flags.TGI,
}
_DOWNLOADS = ("HF_HUB_CACHE", "HF_HOME", "LLAMA_CACHE")


class _Started(Record):
    """A program that a model is started with."""

    engine: str
    program: str
    where: Where
    setting: str


class _Later(Record):
    """Aliases are given when all models are known, for a model's own name comes first."""

    path: Path
    name: str
    where: Where
    setting: str


class Models:
    """Adds one model after the other, and at the end what holds for all of them."""

    def __init__(self, draft: Draft, macros: Macros) -> None:
        self._draft = draft
        self._macros = macros
        self._started: list[_Started] = []
        self._later: list[_Later] = []

    def add(self, name: str, fields: Fields) -> None:
        own = read_macros(fields.node("macros"), fields.name("macros"))
        macros = self._macros.of_model(name, own)
        path = self._draft.model(name, fields.where, fields.path)
        words = self._words(fields, macros)
        command = understand(words) if words else None
        variables = self._variables(fields, macros, command)
        proxy = self._text(fields, "proxy", macros) or f"http://localhost:{PORT}"
        health = self._text(fields, "checkEndpoint", macros)
        if command is None:
            self._elsewhere(path, fields, proxy, health)
        elif command.kind is Program.OTHER:
            self._custom(path, fields, command, variables, proxy, health)
        else:
            self._known(path, fields, command, variables)
            fields.spare("proxy", "gpud listens for the engine on a private address")
            fields.spare("checkEndpoint", "gpud knows where this engine says that it is ready")
        if self._draft.get((*path, "engine")) is None:
            self._draft.discard(path)
        else:
            self._settings(path, fields, macros)
        self._without_counterpart(fields)

    def finish(self) -> None:
        for one in self._later:
            if self._draft.get(one.path) is not None:
                self._draft.alias(one.path, one.name, one.where, one.setting)
        self._programs()

    # One model ------------------------------------------------------------------------------------------------------

    def _words(self, fields: Fields, macros: Macros) -> list[str]:
        node = fields.node("cmd")
        if node is None:
            return []
        if not isinstance(node, Scalar):
            raise unreadable(node.where, f"{fields.name('cmd')}: a command is one text")
        # Comments go first: what stands in them is no macro.
        bare = Scalar(node.where, without_comments(node.text), node.plain)
        return split(macros.expand(bare, fields.name("cmd")), node.where, fields.name("cmd"))

    @staticmethod
    def _text(fields: Fields, key: str, macros: Macros) -> str | None:
        node = fields.node(key)
        return macros.expand(node, fields.name(key)) if isinstance(node, Scalar) else fields.text(key)

    def _variables(self, fields: Fields, macros: Macros, command: Command | None) -> list[tuple[Where, str, str]]:
        """Those of ``env``, then those that the command itself sets; a later one counts."""
        found: dict[str, tuple[Where, str, str]] = {}
        for where, text in fields.texts("env"):
            filled = macros.expand(Scalar(where, text), fields.name("env"))
            name, equals, value = filled.partition("=")
            if not equals:
                self._draft.leave(where, fields.name("env"), "one of its items is not NAME=value", "mend it")
                continue
            found[name] = (where, name, value)
        for name, value in command.variables if command else ():
            found[name] = (fields.at("cmd"), name, value)
        return list(found.values())

    def _known(self, path: Path, fields: Fields, command: Command, variables: Sequence[tuple[Where, str, str]]) -> None:
        """A program that gpud has an engine for."""
        draft, where, setting = self._draft, fields.at("cmd"), fields.name("cmd")
        engine = _ENGINES[command.kind]
        draft.put((*path, "engine"), engine, where, setting, why=f"starts {command.kind}")
        left: list[tuple[Where, str, str]] = []
        parts: list[llama_flags.Part] = []
        hub = ""
        for at, name, value in variables:
            as_flags = llama_variables.as_flags(name, value) if command.kind is Program.LLAMA_SERVER else None
            if as_flags is not None:
                parts.append(llama_flags.Part(at, f"{fields.name('env')} {name}", as_flags, single=True))
            elif name in VISIBLE:
                put_gpu(draft, (*path, "gpu"), value, at, f"{fields.name('env')} {name}")
            else:
                if name in _DOWNLOADS and value.startswith("/"):
                    hub = f"{value.rstrip('/')}/hub" if name == "HF_HOME" else value.rstrip("/")
                left.append((at, name, value))
        if command.kind is Program.LLAMA_SERVER:
            parts.append(llama_flags.Part(where, setting, command.arguments))
            llama_flags.translate(draft, path, parts, hub=hub)
            if not any(word in ("-c", "--ctx-size") for part in parts for word in part.arguments):
                llama_flags.mention_context(draft, path, where, setting)
        else:
            hub_flags.translate(draft, path, command.arguments, where, setting, _FLAGS[command.kind])
        put_environment(draft, (*path, "environment"), left, fields.name("env"))
        if not draft.get((*path, "file")) and not (
            draft.get((*path, "model")) and command.kind in (Program.VLLM, Program.TGI)
        ):
            draft.leave(where, setting, "it names no model", f'write a file below "{path[1]}"')
            draft.discard(path)
            return
        self._started.append(_Started(engine, command.program, where, setting))

    def _custom(
        self,
        path: Path,
        fields: Fields,
        command: Command,
        variables: Sequence[tuple[Where, str, str]],
        proxy: str,
        health: str | None,
    ) -> None:
        """A program that gpud knows nothing of: it is started as it stands, and its memory is unknown."""
        draft, where, setting = self._draft, fields.at("cmd"), fields.name("cmd")
        if any(_hides_secret(word) for word in command.argv):
            text = "a secret stands in the middle of it, and secrets are never copied"
            draft.leave(where, setting, text, f'write the model "{path[1]}" by hand, and the secret into a file')
            return
        words, secret = without_secrets(list(command.argv), draft.secrets.__contains__)
        for name in secret:
            draft.leave(
                where,
                f"{setting} {name}",
                "a secret, and secrets are never copied",
                "have the program read it from a file",
            )
        address = _address(proxy.replace(PORT, "0"))
        if address.hostname and not is_loopback(address.hostname):
            self._at_url(path, fields, proxy, health)
            text = f"what listens at {address.hostname} is not on this machine, and gpud starts nothing there"
            draft.leave(where, setting, text, "start it there by other means")
            return
        port = "" if PORT in proxy else str(_port(proxy) or "")
        words, found = _with_port(words, port)
        handed = [value for _, _, value in variables]
        if not found and not any(PORT in value for value in handed):
            text = "nothing in it says at which port it is to listen, and gpud chooses one for each start"
            draft.leave(where, setting, text, f'have it take ${{port}}, and write it as the command of "{path[1]}"')
            return
        draft.put((*path, "engine"), "custom", where, setting, why="a program that gpud has no engine for")
        if re.fullmatch(r"(docker|podman|nerdctl)", words[0].rsplit("/", 1)[-1]):
            self._container(path, where, setting, words)
        else:
            draft.put((*path, "command"), words, where, setting)
        draft.put((*path, "size"), 0, where, setting, why=_SIZE_UNKNOWN, instead=_SIZE_HINT, changed=True)
        if "/" in words[0] and not words[0].startswith(("/", "$")):
            draft.assume((*path, "directory"), draft.given.directory, "a relative program starts from there")
        self._health(path, fields, health, started=True)
        for at, name, value in variables:
            if name in VISIBLE:
                put_gpu(draft, (*path, "gpu"), value, at, f"{fields.name('env')} {name}")
        others = [one for one in variables if one[1] not in VISIBLE]
        filled = [(at, name, _with_port([value], port)[0][0]) for at, name, value in others]
        put_environment(draft, (*path, "environment"), filled, fields.name("env"))
        if address.path.strip("/"):
            text = f"requests go to the program as they are, without {shown(address.path)} before their paths"
            draft.leave(fields.at("proxy"), fields.name("proxy"), text)

    def _container(self, path: Path, where: Where, setting: str, words: list[str]) -> None:
        draft = self._draft
        text = "gpud measures and ends what it starts, and that is the client here and not the container"
        instead = "a llama-server or a vLLM of this machine can be measured, held within the budget and ended for sure"
        file = _mounted(words)
        if file:
            instead = f'for a llama-server of this machine: engine: llama_server, file: "{file}"'
        draft.put((*path, "command"), words, where, f"{setting} {words[0]}", why=text, instead=instead, changed=True)

    def _elsewhere(self, path: Path, fields: Fields, proxy: str, health: str | None) -> None:
        if not fields.has("proxy") or PORT in proxy:
            text = "it has neither a cmd nor a proxy, so that there is nothing to start or to reach"
            self._draft.leave(fields.where, f"models.{path[1]}", text)
            return
        self._at_url(path, fields, proxy, health)

    def _at_url(self, path: Path, fields: Fields, proxy: str, health: str | None) -> None:
        """What somebody else runs."""
        draft, where, setting = self._draft, fields.at("proxy"), fields.name("proxy")
        if not re.fullmatch(r"http://[^\s@?#]+", proxy):
            draft.leave(where, setting, "gpud reaches engines by http://HOST:PORT alone, without TLS or a password")
            return
        draft.put((*path, "engine"), "custom", where, setting, why="somebody else runs it")
        draft.put((*path, "url"), proxy, where, setting)
        host = _address(proxy).hostname or ""
        if is_loopback(host):
            draft.put((*path, "size"), 0, where, setting, why=_SIZE_UNKNOWN, instead=_SIZE_HINT, changed=True)
        else:
            draft.put((*path, "size"), 0, where, setting, why="it needs no memory of this machine")
        self._health(path, fields, health, started=False)

    def _health(self, path: Path, fields: Fields, health: str | None, *, started: bool) -> None:
        where, setting = fields.at("checkEndpoint"), fields.name("checkEndpoint")
        if health is None:
            return
        if health == "none":
            if started:
                why = "gpud waits for some path to answer 200; / is a guess"
                self._draft.put((*path, "health"), "/", where, setting, why=why, changed=True)
        elif health.startswith("/"):
            self._draft.put((*path, "health"), health, where, setting)
        else:
            self._draft.put((*path, "health"), f"/{health}", where, setting)

    def _settings(self, path: Path, fields: Fields, macros: Macros) -> None:
        draft = self._draft
        ttl = fields.whole("ttl")
        if ttl is not None:
            where, setting = fields.at("ttl"), fields.name("ttl")
            if ttl < 0:
                draft.spare(where, setting, "it says that the global one holds, as it does here by itself")
            elif ttl == 0:
                draft.put((*path, "idle_timeout"), "never", where, setting, why="0 means never")
            else:
                draft.put((*path, "idle_timeout"), ttl, where, setting)
        timeout = fields.whole("healthCheckTimeout")
        if timeout:
            where = fields.at("healthCheckTimeout")
            draft.put((*path, "load_timeout"), max(15, timeout), where, fields.name("healthCheckTimeout"))
        grace = fields.whole("unloadTimeout")
        if grace:
            draft.put((*path, "stop", "term"), grace, fields.at("unloadTimeout"), fields.name("unloadTimeout"))
        for where, alias in self._aliases(fields, macros):
            self._later.append(_Later(path, alias, where, fields.name("aliases")))
        self._filters(path, fields, macros)
        if self._text(fields, "useModelName", macros) is not None:
            text = "gpud names a model to its engine as the engine knows it"
            if draft.get((*path, "engine")) == "custom":
                text = "gpud names the model to a program of its own by its name here; give it that name"
            draft.spare(fields.at("useModelName"), fields.name("useModelName"), text)

    def _aliases(self, fields: Fields, macros: Macros) -> list[tuple[Where, str]]:
        """Names, or maps with an ``id``."""
        node = fields.node("aliases")
        found: list[tuple[Where, str]] = []
        for one in node.nodes if isinstance(node, Items) else ((node,) if node is not None else ()):
            if isinstance(one, Table) and "id" in one.entries:
                one = one.entries["id"].node
            if isinstance(one, Scalar):
                found.append((one.where, macros.expand(one, fields.name("aliases"))))
            else:
                self._draft.leave(one.where, fields.name("aliases"), "one of its items is no name", "mend it")
        return found

    def _filters(self, path: Path, fields: Fields, macros: Macros) -> None:
        filters = fields.table("filters")
        if filters is None:
            return
        draft = self._draft
        why = "gpud relays requests as they are, and changes nothing in them"
        for key in ("stripParams", "strip_params"):
            filters.drop(key, why, "clients say what they want; the engine's own defaults stand in extra_flags")
        parameters = filters.table("setParams")
        if parameters is not None:
            instead = "what clients leave out can be set for the engine: extra_flags: [--temp, 0.7]"
            names = " ".join(parameters.names()[:12])
            draft.leave(filters.at("setParams"), f"{filters.name('setParams')} ({names})", why, instead)
        by_id = filters.table("setParamsByID")
        for name in by_id.names() if by_id is not None else []:
            assert by_id is not None
            setting = by_id.name(name)
            draft.leave(by_id.at(name), setting, f"{why}; the name is an alias here, of the model as it is")
            alias = macros.expand(Scalar(by_id.at(name), name), setting)
            if alias != path[1]:
                self._later.append(_Later(path, alias, by_id.at(name), setting))
        filters.drop_left(why)

    def _without_counterpart(self, fields: Fields) -> None:
        node = fields.node("cmdStop")
        if node is not None:
            text = "gpud ends what it has started itself: TERM, TERM again, then everything that belongs to it"
            instead = "stop.term says how long it has, and unload: {post: …} asks a custom engine for its memory"
            self._draft.leave(fields.at("cmdStop"), fields.name("cmdStop"), text, instead)
        for key in ("name", "description", "metadata", "capabilities"):
            fields.drop(key, "gpud tells of a model what its file says, and keeps no words about it")
        fields.drop("unlisted", "gpud lists every model that a client may use", "gpudctl key add NAME --allow MODEL")
        limit = "gpud lets requests wait in place of refusing them; as many as parallel are worked on at a time"
        if fields.whole("concurrencyLimit"):
            self._draft.leave(fields.at("concurrencyLimit"), fields.name("concurrencyLimit"), limit, "parallel: N")
        fields.drop("sendLoadingState", "gpud keeps a stream alive while its model loads (http.heartbeat)")
        fields.drop("timeouts", "gpud waits for an engine as long as it works; http.limits is about clients")
        fields.drop("compat", "gpud counts a request from its first byte to its last, whatever it is")
        fields.node("checkEndpoint"), fields.node("proxy"), fields.node("aliases"), fields.node("filters")
        for key in ("ttl", "healthCheckTimeout", "unloadTimeout", "useModelName", "env", "macros"):
            fields.node(key)
        for name, where, _ in fields.left():
            self._draft.leave(where, name, "gpud does not know this key of llama-swap's")

    # All models -----------------------------------------------------------------------------------------------------

    def _programs(self) -> None:
        """Each engine has one program here: the one that most of its models had."""
        draft = self._draft
        for engine in dict.fromkeys(one.engine for one in self._started):
            mine = [one for one in self._started if one.engine == engine]
            programs = [one.program for one in mine]
            chosen = max(dict.fromkeys(programs), key=lambda one: (programs.count(one), "/" in one))
            first = next(one for one in mine if one.program == chosen)
            key = "python" if engine == "llama_cpp" else "binary"
            if engine == "vllm" and re.fullmatch(r"(python|pypy)[0-9.]*", chosen.rsplit("/", 1)[-1]):
                chosen_vllm = re.sub(r"[^/]+$", "vllm", chosen) if "/" in chosen else ""
                chosen = chosen_vllm
            if chosen and chosen not in ("llama-server", "vllm", "text-generation-launcher"):
                found = path_of(draft, chosen) if "/" in chosen else Place(chosen)
                place = ("engines", engine, key)
                setting = f"{first.setting} program"
                draft.put(place, found.path, first.where, setting, why=found.why, changed=found.is_guess)
            for one in mine:
                if one.program != first.program:
                    text = f"all models of the engine {engine} are served by one program here, {shown(first.program)}"
                    instead = f"engines.{engine}.{key} says which"
                    draft.leave(one.where, f"{one.setting} {one.program}", text, instead)


def _address(proxy: str) -> SplitResult:
    """Empty where it is none."""
    try:
        return urlsplit(proxy)
    except ValueError:
        return urlsplit("")


def _port(proxy: str) -> int | None:
    try:
        return urlsplit(proxy).port
    except ValueError:
        return None


_MARK = "\0port\0"


def _with_port(words: Sequence[str], port: str) -> tuple[list[str], bool]:
    """The words for gpud: its own placeholder where a port stood, and dollar signs that mean nothing."""
    changed = []
    found = False
    for word in words:
        marked = word.replace(PORT, _MARK)
        if port:
            marked = re.sub(rf"(?<![\w.]){port}(?![\w.])", _MARK, marked)
        found = found or _MARK in marked
        changed.append(marked.replace("$", "$$").replace(_MARK, "${port}"))
    return changed, found


def _hides_secret(word: str) -> bool:
    """Whether a secret stands inside of a word, as in the script of a shell."""
    if not re.search(r"\s", word):
        return False
    parts = re.split(r"[\s\"';&|]+", word)
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        name, equals, value = part.partition("=")
        if names_secret(name) and ((equals and value) or (name.startswith("-") and following)):
            return True
    return False


def _mounted(words: Sequence[str]) -> str:
    """The model's file outside of a container, where both the mount and the file are named."""
    mounts: list[tuple[str, str]] = []
    for index, word in enumerate(words[:-1]):
        value = word.partition("=")[2] if word.startswith("--volume=") else words[index + 1]
        if word in ("-v", "--volume") or word.startswith("--volume="):
            outside, _, inside = value.partition(":")
            mounts.append((inside.partition(":")[0].rstrip("/"), outside.rstrip("/")))
    for index, word in enumerate(words[:-1]):
        if word in ("-m", "--model"):
            file = words[index + 1]
            for inside, outside in mounts:
                if inside and outside.startswith("/") and file.startswith(f"{inside}/"):
                    return outside + file[len(inside) :]
    return ""
