"""Makes the models of what was given for them, for their engines and for all: complete, each with its alternatives."""

import os.path
from collections.abc import Callable, Sequence
from copy import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpud.config.engine_choice import Chosen
from gpud.config.given import UNSET, Given, is_given, is_good, unused
from gpud.config.kinds import BROKEN, Reading, Wrong
from gpud.config.schema import BUSY, MODEL, STOP, UNLOAD, is_pattern
from gpud.config.sections import CUSTOM, HUB, LLAMA, OLLAMA, Found, Key, Section, Values
from gpud.config.source import Scalar, Where, shown
from gpud.config.texts import plain_data
from gpud.core.engines import BUILT_IN
from gpud.core.facts import BusyProbe, EngineSettings, HttpCall, Model, StopTimes
from gpud.core.record import replace

OWN = ("file", "model", "command", "url", "directory", "engine")
"""What makes an entry a model of its own; without any it says how one is treated that is found."""

Places = Callable[[str], str]
"""Where a key of a model stands, as messages name it."""


class Models:
    """Resolves the models: model before its engine's defaults before ``defaults`` before what is built in."""

    def __init__(
        self,
        reading: Reading,
        defaults: Values,
        engines: Values,
        stop: Values,
        idle_timeout_s: float,
        backend_order: tuple[str, ...],
    ) -> None:
        self._reading = reading
        self._defaults = defaults
        self._engines = engines
        self._stop = stop
        self._idle_timeout_s = idle_timeout_s
        self._backend_order = backend_order
        self.overrides: dict[str, Values] = {}
        self._layer_of_found: Values = {}

    def all(self, given: Values) -> dict[str, Model]:
        """Those with a model of their own; what is said of models that are found is in ``overrides`` then."""
        models: dict[str, Model] = {}
        for name, found in given.items():
            if isinstance(found.value, dict) and (is_pattern(name) or not any(is_given(found.value, k) for k in OWN)):
                self._override(name, found.value)
            elif isinstance(found.value, dict):
                model = self._model(name, found.value, found.where)
                if model is not None:
                    models[name] = model
        self._check_aliases(given)
        return models

    def _model(self, name: str, own: Values, where: Where) -> Model | None:
        path = f"models.{name}"
        found = own.get("engine") or self._defaults.get("engine")
        if found is None or found.value is None:
            near = " ".join(self._reading.known_engines or BUILT_IN)
            self._reading.wrong(where, path, f'has no "engine"; add one of: {near}')
            return None
        if found.value is BROKEN:
            return None
        choice: Chosen = found.value
        names = choice.names or self._possible(own)
        if not names:
            self._nothing_possible(path, own, found.where)
            return None
        self._check_used(path, own, choice, names)
        first, *others = [self._by(engine, name, own, choice, names, where) for engine in names]
        return replace(first, alternatives=tuple(others))

    def _override(self, name: str, own: Values) -> None:
        """What it says is checked here; of what model it is said is known when one is found."""
        path = f"models.{name}"
        choice: Chosen | None = own["engine"].value if is_good(own.get("engine")) else None
        for key in (*OWN[:-1], "aliases") if is_pattern(name) else ():
            if is_given(own, key):
                text = "belongs to one model, and a pattern stands for many; remove it, or write an entry for that one"
                self._reading.wrong(own[key].where, f"{path}.{key}", f"{shown(own[key].node)}: {text}")
        if choice is None or choice.names:
            # Where the engine is left open, any of them may take the key.
            names = choice.names if choice is not None else BUILT_IN
            self._check_used(path, own, choice or Chosen(()), names)
        self.overrides[name] = own

    def said_of(self, name: str) -> Values:
        """What the overrides say of a model that was found: patterns in their order, then the entry of its own."""
        said: Values = {}
        for pattern, own in self.overrides.items():
            if is_pattern(pattern) and fnmatchcase(name, pattern):
                said |= own
        return said | self.overrides.get(name, {})

    def matching(self, name: str) -> tuple[str, ...]:
        """The overrides that say something of it."""
        patterns = (one for one in self.overrides if is_pattern(one) and fnmatchcase(name, one))
        return (*patterns, *((name,) if name in self.overrides else ()))

    def written_overrides(self) -> dict[str, dict[str, object]]:
        """As a file has them."""
        kinds = {key.name: key.kind for key in MODEL.keys}
        return {
            name: {
                key: plain_data(found.node)
                if found.value is None or isinstance(found.value, (dict, Chosen))
                else kinds[key].write(found.value)
                for key, found in own.items()
                if found.value is not BROKEN
            }
            for name, own in self.overrides.items()
        }

    def reading_into(self, reading: Reading) -> "Models":
        """The same, with its problems noted elsewhere: the configuration itself has been found good."""
        other = copy(self)
        other._reading = reading
        return other

    def of_found(self, name: str, own: Values, layer: Values, engines: Sequence[str]) -> Model:
        """The model that was found, by the first of these engines that can serve it, with the others behind it.

        ``layer`` is what is right for such a model where nobody says anything. Raises Wrong when there is no way.
        """
        said: Values = own | {key: value for key, value in self.said_of(name).items() if key not in ("file", "model")}
        found = said.get("engine")
        chosen: Chosen = found.value if found is not None and isinstance(found.value, Chosen) else Chosen(())
        names = chosen.names or tuple(engine for engine in self._possible(own) if engine in engines)
        names = names or self._possible(own)[:1]
        if not names:
            raise Wrong(f"no engine of scheduler.backend_order ({' '.join(self._backend_order)}) serves such a model")
        where = Where("the registry", 0)
        self._layer_of_found = layer
        try:
            first, *others = [self._by(engine, name, said, chosen, names, where) for engine in names]
        finally:
            self._layer_of_found = {}
        return replace(first, alternatives=tuple(others))

    def _possible(self, own: Values) -> tuple[str, ...]:
        """The engines of ``scheduler.backend_order`` that can serve a model with these keys."""
        file = own.get("file")
        # A value that was refused has its own message: what it might have been is not held against the engine.
        is_gguf = is_given(own, "file") and (file is None or file.value is BROKEN or _is_gguf(file.value))

        def possible(engine: str) -> bool:
            if engine in LLAMA:
                return is_gguf
            if engine in OLLAMA:
                return is_given(own, "model")
            if engine in CUSTOM:
                return is_given(own, "command") or is_given(own, "url")
            if engine in HUB:
                in_safetensors = is_given(own, "file") and not is_gguf
                return not is_given(own, "url") and (in_safetensors or _is_at_the_hub(own))
            return is_given(own, "file")

        return tuple(engine for engine in self._backend_order if possible(engine))

    def _nothing_possible(self, path: str, own: Values, where: Where) -> None:
        order = f"scheduler.backend_order ({' '.join(self._backend_order)})"
        file = own.get("file")
        if file is not None and is_good(file) and not _is_gguf(file.value):
            text = (
                f"is no .gguf file, and llama engines read nothing else; no other engine of {order} takes it; "
                "convert it, or name one that does"
            )
            self._reading.wrong(file.where, f"{path}.file", f"{shown(file.node)}: {text}")
        else:
            text = (
                f"no engine of {order} can serve this model; add file: /path/to/model.gguf, model: NAME, or an engine"
            )
            self._reading.wrong(where, f"{path}.engine", f"auto: {text}")

    def _check_used(self, path: str, own: Values, choice: Chosen, names: tuple[str, ...]) -> None:
        """Every key is taken by one of the engines at least; one that was given for a single engine, by that one."""
        for key in MODEL.keys:
            if key.name in own and not any(key.used_by(engine) for engine in names):
                unused(key, own[key.name], path, names, self._reading)
            for engine, special in choice.own.items():
                if key.name in special and not key.used_by(engine):
                    unused(key, special[key.name], f"{path}.engine.{engine}", (engine,), self._reading)

    def _by(
        self, engine: str, name: str, common: Values, choice: Chosen, names: tuple[str, ...], where: Where
    ) -> Model:
        """The model as this one of its engines serves it."""
        special = choice.own.get(engine, {})
        own = {**common, **special}

        def at(key: str) -> str:
            return f"models.{name}.engine.{engine}.{key}" if key in special else f"models.{name}.{key}"

        self._check_shape(f"models.{name}", at, engine, own, where, alone=len(names) == 1)
        layers = [own, self._layer(engine), self._defaults, self._layer_of_found]
        settings: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        for key in MODEL.keys:
            if key.name == "engine" or not key.used_by(engine):
                continue
            value = self._value(key, layers, engine)
            if value is not UNSET:
                (fields if key.model_field else settings)[key.field or key.name] = value
        self._place_files(settings, own, engine)
        self._unload_and_busy(settings, own, at)
        if engine in OLLAMA:
            settings.setdefault("ollama_name", name)
        if engine in HUB:
            settings["hub_name"] = settings.pop("ollama_name", "")
        if engine in CUSTOM and "command" in settings:
            settings.setdefault("health", "/health")
            program = settings["command"][0]
            if "/" in program and not program.startswith("/"):
                # "./server" means the one beside the file, as it does for every other path in it.
                settings.setdefault("directory", str(Path(own["command"].where.file).absolute().parent))
        if (settings.get("url") and engine in CUSTOM | HUB) or (engine in HUB and self._of_engine(engine, "url")):
            settings["environment"] = ()
        elif engine in CUSTOM and "command" in settings:
            self._check_reachable(at, own, settings, engine)
        self._check_least_context(at, fields, settings, own, alone=len(names) == 1 or "least_context" in special)
        fields.setdefault("idle_timeout_s", self._idle_timeout_s)
        fields["stop"] = self._stop_times(layers)
        if fields.get("gpu") == "auto":
            fields["gpu"] = ""
        return Model(name=name, engine=engine, settings=EngineSettings(**settings), **fields)

    def _check_least_context(
        self, at: Places, fields: dict[str, Any], settings: dict[str, Any], own: Values, *, alone: bool
    ) -> None:
        """A least context that leaves nothing to lower is left out; whoever wrote it for this model hears of it."""
        least: int | None = fields.get("least_context")
        context: int | None = settings.get("context")
        if least is None or (context is not None and least <= context):
            return
        del fields["least_context"]
        found = own.get("least_context")
        if found is None or ("context" in own and own["context"].value is BROKEN):
            return
        if context is not None:
            text = f"is more than its context, {context}; lower it, or raise context"
        elif alone:
            text = "has no effect without a context from which to lower it; add context"
        else:
            return
        self._reading.wrong(found.where, at("least_context"), f"{least}: {text}")

    def _layer(self, engine: str) -> Values:
        found = self._engines.get(engine)
        if found is None or not isinstance(found.value, dict):
            return {}
        defaults = found.value.get("defaults")
        return defaults.value if defaults is not None and isinstance(defaults.value, dict) else {}

    def _value(self, key: Key, layers: list[Values], engine: str) -> Any:
        if key.name == "environment":
            merged: dict[str, str] = {}
            for layer in reversed(layers):
                found = layer.get(key.name)
                if found is not None and found.value is not BROKEN:
                    # An explicit null takes back what the layers below said.
                    merged = {} if found.value is None else {**merged, **dict(found.value)}
            return tuple(merged.items()) if merged else UNSET
        for layer in layers:
            found = layer.get(key.name)
            if found is not None and found.value is not BROKEN:
                return UNSET if found.value is None else found.value
        if key.default is None or not (key.default_engines is None or engine in key.default_engines):
            return UNSET
        return key.default_value(self._reading)

    def _stop_times(self, layers: list[Values]) -> StopTimes:
        merged: Values = dict(self._stop)
        for layer in reversed(layers):
            found = layer.get("stop")
            if found is not None and isinstance(found.value, dict):
                merged |= found.value
        return StopTimes(**Given(STOP, merged, self._reading).fields())

    def _place_files(self, settings: dict[str, Any], own: Values, engine: str) -> None:
        """Relative model files start from the engine's ``models_dir`` where it has one."""
        directory = self._of_engine(engine, "models_dir")
        if not directory or engine in OLLAMA:
            return
        for name in ("file", "mmproj", "draft_file"):
            node = own[name].node if name in settings and name in own else None
            if isinstance(node, Scalar) and not node.text.startswith(("/", "~")):
                settings[name] = os.path.normpath(f"{directory}/{node.text}")

    def _of_engine(self, engine: str, name: str) -> Any:
        found = self._engines.get(engine)
        values = found.value if found is not None and isinstance(found.value, dict) else {}
        return values[name].value if is_good(values.get(name)) else None

    def _check_reachable(self, at: Places, own: Values, settings: dict[str, Any], engine: str) -> None:
        variables = (*settings.get("environment", ()), *(self._of_engine(engine, "environment") or ()))
        handed = (*settings["command"], *(value for _, value in variables))
        if not any(place in text for place in ("${port}", "${socket}") for text in handed):
            text = "neither it nor environment mentions ${port} or ${socket}; add the one at which it is to listen"
            self._reading.wrong(own["command"].where, at("command"), f"a list: {text}")

    def _unload_and_busy(self, settings: dict[str, Any], own: Values, at: Places) -> None:
        unload = settings.pop("unload", None)
        if unload is not None and self._has_required(UNLOAD, unload, own["unload"], at("unload")):
            given = Given(UNLOAD, unload, self._reading)
            settings["unload"] = HttpCall("POST", given["post"], given["body"])
        busy = settings.pop("busy", None)
        if busy is not None and self._has_required(BUSY, busy, own["busy"], at("busy")):
            given = Given(BUSY, busy, self._reading)
            settings["busy"] = BusyProbe(given["get"], given["any"])

    def _has_required(self, section: Section, values: Values, found: Found, path: str) -> bool:
        for key in section.keys:
            if key.required and key.name not in values:
                self._reading.wrong(
                    found.where, path, f'has no "{key.name}"; add, for example: {key.name}: {key.example}'
                )
        return all(not key.required or is_good(values.get(key.name)) for key in section.keys)

    def _check_shape(self, path: str, at: Places, engine: str, own: Values, where: Where, *, alone: bool) -> None:
        if engine in LLAMA and not is_given(own, "file"):
            self._reading.wrong(
                where, path, f'has no "file", which the engine "{engine}" needs; add file: /path/to/model.gguf'
            )
        if engine in HUB:
            self._check_hub(path, at, engine, own, where)
        if engine not in CUSTOM:
            return
        if not is_given(own, "size"):
            hint = "add size: and what it needs, like 4GiB (0 where it needs no memory of this machine)"
            self._reading.wrong(where, path, f'has no "size", which gpud cannot find out for a custom engine; {hint}')
        if not is_given(own, "command") and not is_given(own, "url"):
            hint = 'add command: [program, argument, "${port}"], or url: for a server that runs anyway'
            self._reading.wrong(where, path, f'has neither "command" nor "url"; {hint}')
        if not is_given(own, "url"):
            return
        for key, why in (
            (
                "command",
                "a server that gpud starts has no url, and one at a url is not started by gpud; remove one of the two",
            ),
            ("directory", "gpud does not start what runs at a url; remove it"),
            ("environment", "gpud does not start what runs at a url; remove it"),
        ):
            if is_given(own, key) and (alone or key != "environment"):
                shape = "a map" if key == "environment" else shown(own[key].node)
                self._reading.wrong(own[key].where, at(key), f"{shape}: {why}")

    def _check_hub(self, path: str, at: Places, engine: str, own: Values, where: Where) -> None:
        file = own.get("file")
        if is_given(own, "url") or self._of_engine(engine, "url"):
            if not is_given(own, "size"):
                hint = "add size: and what it holds while it is awake, like 20GiB"
                text = f'has no "size", which gpud cannot find out for a {engine} that somebody else runs; {hint}'
                self._reading.wrong(where, path, text)
        elif file is None and not is_given(own, "model"):
            text = (
                f'has neither "file" nor "model", one of which the engine "{engine}" needs; add file: /path/to/folder, '
                "model: NAME/AT-HUGGING-FACE, or url: for a server that runs anyway"
            )
            self._reading.wrong(where, path, text)
        if file is not None and is_good(file) and _is_gguf(file.value):
            text = f'the engine "{engine}" reads folders with SafeTensors; give a GGUF file to a llama engine'
            self._reading.wrong(file.where, at("file"), f"{shown(file.node)}: {text}")

    def _check_aliases(self, given: Values) -> None:
        """Every name leads to one model."""
        owner: dict[str, str] = {name: name for name in given}
        for name, found in given.items():
            aliases = found.value.get("aliases") if isinstance(found.value, dict) else None
            if aliases is None or not isinstance(aliases.value, tuple):
                continue
            for alias in aliases.value:
                if alias not in owner:
                    owner[alias] = name
                    continue
                other = owner[alias]
                if alias == other:
                    text = "is the name of the model itself" if other == name else "is the name of another model"
                else:
                    text = "stands here twice" if other == name else f'is an alias of "{other}" already'
                self._reading.wrong(
                    aliases.where, f"models.{name}.aliases", f'"{alias}": {text}; remove it or choose another'
                )


def _is_at_the_hub(own: Values) -> bool:
    """Whether the model has a name as Hugging Face gives them: an owner, and no tag. A refused one may be any."""
    found = own.get("model")
    if found is None or found.value is None:
        return False
    return found.value is BROKEN or ("/" in found.value and ":" not in found.value)


def _is_gguf(path: str) -> bool:
    return path.lower().endswith(".gguf")
