"""Makes a Config of what the tables read: applies the defaults in their order and checks what spans several keys."""

import os.path
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpud.config.kinds import BROKEN, Percent, Reading
from gpud.config.records import BusConfig, Config, Door, EngineConfig, HttpConfig, LoggingConfig
from gpud.config.schema import BUSY, ENGINE, MODEL, ROOT, STOP, UNLOAD
from gpud.config.sections import CUSTOM, LLAMA, OLLAMA, Found, Key, Section, Values
from gpud.config.source import Node, Scalar, Where, shown
from gpud.config.texts import BUILT_IN_ENGINES
from gpud.core.facts import BudgetLimits, BusyProbe, EngineSettings, HttpCall, Limits, Model, StopTimes


class _Unset:
    """Stands for a value that nobody gave and that has no default."""


_UNSET = _Unset()


def build(root: Node, reading: Reading, *, complete: bool, sources: tuple[str, ...] = ()) -> Config | None:
    """The configuration, or ``None`` when there are problems, all of which are in ``reading`` then.

    ``complete`` False says that a part could not be read: what seems to be missing may stand there.
    """
    if not complete:
        return None
    top = _Given(ROOT, ROOT.read(root, "", reading), reading)
    engines = top.section("engines").values
    idle_timeout_s = top.section("idle")["timeout"]
    resolver = _Models(reading, top.section("defaults").values, engines, top.section("stop").values, idle_timeout_s)
    models = resolver.all(top.section("models").values)
    config = Config(
        models=MappingProxyType(models),
        engines=MappingProxyType(_engines(engines, reading)),
        limits=_limits(top, reading),
        idle_timeout_s=idle_timeout_s,
        stop=StopTimes(**top.section("stop").fields()),
        base_directory=top.section("storage")["base_directory"],
        logging=LoggingConfig(**top.section("logging").fields()),
        http=_http(top.section("http"), reading),
        bus=BusConfig(**top.section("bus").fields()),
        sources=sources,
    )
    return None if reading.problems else config


class _Given:
    """The values of one section with its defaults behind them; a refused value reads as its default."""

    def __init__(self, section: Section, values: Values, reading: Reading, path: str = "") -> None:
        self._section = section
        self._reading = reading
        self._keys = {key.name: key for key in section.keys}
        self.values = values
        self.path = path

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        return None if value is _UNSET else value

    def get(self, name: str) -> Any:
        found = self.values.get(name)
        if found is not None and found.value is not None and found.value is not BROKEN:
            return found.value
        key = self._keys[name]
        return _UNSET if key.default is None else key.default_value(self._reading)

    def is_refused(self, *names: str) -> bool:
        """Whether one of these keys has a value that was refused: what it is compared with is not to blame then."""
        return any(name in self.values and self.values[name].value is BROKEN for name in names)

    def section(self, name: str) -> "_Given":
        kind = self._keys[name].kind
        found = self.values.get(name)
        values = found.value if found is not None and isinstance(found.value, dict) else {}
        section = kind if isinstance(kind, Section) else Section(())
        return _Given(section, values, self._reading, f"{self.path}.{name}" if self.path else name)

    def fields(self) -> dict[str, Any]:
        """What the record of this section is made with; what is unset is left to the record."""
        pairs = ((key.field or key.name, self.get(key.name)) for key in self._section.keys)
        return {name: value for name, value in pairs if value is not _UNSET}


def _limits(top: _Given, reading: Reading) -> Limits:
    gpu = top.section("gpu")
    restart = top.section("restart")
    if not restart.is_refused("first", "max") and restart["max"] < restart["first"]:
        found = restart.values.get("max") or restart.values["first"]
        reading.wrong(
            found.where,
            "restart.max",
            f"{restart['max']:g} seconds: is less than restart.first, {restart['first']:g} seconds; raise it",
        )
    return Limits(
        gpu=_budget(gpu["budget"], gpu["reserve"]),
        host=_budget(gpu["host_budget"], gpu["host_reserve"]),
        backoff_first_s=restart["first"],
        backoff_max_s=restart["max"],
        backoff_attempts=restart["attempts"],
        healthy_after_s=restart["healthy_after"],
        memory_wait_s=top["memory_wait"],
        shutdown_drain_s=top["shutdown_drain"],
    )


def _budget(budget: int | Percent | None, reserve: int) -> BudgetLimits:
    if isinstance(budget, Percent):
        return BudgetLimits(budget_percent=budget.value, reserve_bytes=reserve)
    return BudgetLimits(budget_bytes=budget, reserve_bytes=reserve)


def _http(http: _Given, reading: Reading) -> HttpConfig:
    doors = {key: Door(**http.section(key).fields()) for key in ("front", "management", "ollama")}
    taken: dict[tuple[str, int], str] = {}
    for name, door in doors.items():
        if not door.enable or http.section(name).is_refused("enable", "host", "port"):
            continue
        other = taken.setdefault((door.host, door.port), name)
        if other != name:
            found = http.section(name).values.get("port") or http.section(other).values.get("port")
            found = found or http.section(name).values.get("host") or http.section(other).values["host"]
            reading.wrong(
                found.where,
                f"http.{name}.port",
                f"{door.port}: http.{other} listens on {door.host}:{door.port} already; choose another port",
            )
    return HttpConfig(**doors)


def _engines(given: Values, reading: Reading) -> dict[str, EngineConfig]:
    engines: dict[str, EngineConfig] = {}
    for name, found in given.items():
        if not isinstance(found.value, dict):
            continue
        path = f"engines.{name}"
        for key in ENGINE.keys:
            if key.name in found.value and not key.used_by(name):
                _unused(key, found.value[key.name], path, name, reading)
        _check_keys_of_defaults(found.value, name, path, reading)
        engine = _Given(ENGINE, found.value, reading)
        if engine["url"]:
            for key_name in ("binary", "host", "port", "models_dir", "keep_running"):
                if name in OLLAMA and key_name in found.value:
                    where, node = found.value[key_name].where, found.value[key_name].node
                    text = "gpud does not start a server that runs at a url; remove this or the url"
                    reading.wrong(where, f"{path}.{key_name}", f"{shown(node)}: {text}")
        fields = engine.fields()
        fields.pop("defaults", None)
        engines[name] = EngineConfig(**fields)
    return engines


def _check_keys_of_defaults(engine: Values, name: str, path: str, reading: Reading) -> None:
    found = engine.get("defaults")
    if found is None or not isinstance(found.value, dict):
        return
    for key in MODEL.keys:
        if key.name in found.value and not key.used_by(name):
            _unused(key, found.value[key.name], f"{path}.defaults", name, reading)


def _unused(key: Key, found: Found, path: str, engine: str, reading: Reading) -> None:
    if found.value is None:
        return
    users = " ".join(name for name in BUILT_IN_ENGINES if key.used_by(name))
    hints = {
        ("custom", "context"): "; put it into its command",
        ("custom", "extra_flags"): "; put them into its command",
        ("ollama", "environment"): "; all models share one server: set it under engines.ollama.environment",
        ("ollama", "file"): '; name the model in Ollama\'s store with "model"',
    }
    value = "a map" if key.name == "environment" else shown(found.node)
    hint = hints.get((engine, key.name), "; remove it")
    text = f'{value}: means nothing to the engine "{engine}" (only to: {users}){hint}'
    reading.wrong(found.where, f"{path}.{key.name}", text)


class _Models:
    """Resolves the models: model before its engine's defaults before ``defaults`` before what is built in."""

    def __init__(
        self, reading: Reading, defaults: Values, engines: Values, stop: Values, idle_timeout_s: float
    ) -> None:
        self._reading = reading
        self._defaults = defaults
        self._engines = engines
        self._stop = stop
        self._idle_timeout_s = idle_timeout_s

    def all(self, given: Values) -> dict[str, Model]:
        models: dict[str, Model] = {}
        for name, found in given.items():
            if isinstance(found.value, dict):
                model = self._model(name, found.value, found.where)
                if model is not None:
                    models[name] = model
        self._check_aliases(given)
        return models

    def _model(self, name: str, own: Values, where: Where) -> Model | None:
        path = f"models.{name}"
        found = own.get("engine") or self._defaults.get("engine")
        if found is None or found.value is None:
            near = " ".join(self._reading.known_engines or BUILT_IN_ENGINES)
            self._reading.wrong(where, path, f'has no "engine"; add one of: {near}')
            return None
        if found.value is BROKEN:
            return None
        engine: str = found.value
        self._check_shape(name, engine, own, where)
        layers = [own, self._layer(engine), self._defaults]
        settings: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        for key in MODEL.keys:
            if key.name == "engine":
                continue
            if not key.used_by(engine):
                if key.name in own:
                    _unused(key, own[key.name], path, engine, self._reading)
                continue
            value = self._value(key, layers, engine)
            if value is not _UNSET:
                (fields if key.model_field else settings)[key.field or key.name] = value
        self._place_files(settings, own, engine)
        self._unload_and_busy(settings, own, path)
        if engine in OLLAMA:
            settings.setdefault("ollama_name", name)
        if engine in CUSTOM and "command" in settings:
            settings.setdefault("health", "/health")
            program = settings["command"][0]
            if "/" in program and not program.startswith("/"):
                # "./server" means the one beside the file, as it does for every other path in it.
                settings.setdefault("directory", str(Path(own["command"].where.file).absolute().parent))
        if settings.get("url") and engine in CUSTOM:
            settings["environment"] = ()
        elif engine in CUSTOM and "command" in settings:
            self._check_reachable(path, own, settings, engine)
        fields.setdefault("idle_timeout_s", self._idle_timeout_s)
        fields["stop"] = self._stop_times(layers)
        if fields.get("gpu") == "auto":
            fields["gpu"] = ""
        return Model(name=name, engine=engine, settings=EngineSettings(**settings), **fields)

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
            return tuple(merged.items()) if merged else _UNSET
        for layer in layers:
            found = layer.get(key.name)
            if found is not None and found.value is not BROKEN:
                return _UNSET if found.value is None else found.value
        if key.default is None or not (key.default_engines is None or engine in key.default_engines):
            return _UNSET
        return key.default_value(self._reading)

    def _stop_times(self, layers: list[Values]) -> StopTimes:
        merged: Values = dict(self._stop)
        for layer in reversed(layers):
            found = layer.get("stop")
            if found is not None and isinstance(found.value, dict):
                merged |= found.value
        return StopTimes(**_Given(STOP, merged, self._reading).fields())

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
        return values[name].value if _is_good(values.get(name)) else None

    def _check_reachable(self, path: str, own: Values, settings: dict[str, Any], engine: str) -> None:
        variables = (*settings.get("environment", ()), *(self._of_engine(engine, "environment") or ()))
        handed = (*settings["command"], *(value for _, value in variables))
        if not any(place in text for place in ("${port}", "${socket}") for text in handed):
            text = "neither it nor environment mentions ${port} or ${socket}; add the one at which it is to listen"
            self._reading.wrong(own["command"].where, f"{path}.command", f"a list: {text}")

    def _unload_and_busy(self, settings: dict[str, Any], own: Values, path: str) -> None:
        unload = settings.pop("unload", None)
        if unload is not None and self._has_required(UNLOAD, unload, own["unload"], f"{path}.unload"):
            given = _Given(UNLOAD, unload, self._reading)
            settings["unload"] = HttpCall("POST", given["post"], given["body"])
        busy = settings.pop("busy", None)
        if busy is not None and self._has_required(BUSY, busy, own["busy"], f"{path}.busy"):
            given = _Given(BUSY, busy, self._reading)
            settings["busy"] = BusyProbe(given["get"], given["any"])

    def _has_required(self, section: Section, values: Values, found: Found, path: str) -> bool:
        for key in section.keys:
            if key.required and key.name not in values:
                self._reading.wrong(
                    found.where, path, f'has no "{key.name}"; add, for example: {key.name}: {key.example}'
                )
        return all(not key.required or _is_good(values.get(key.name)) for key in section.keys)

    def _check_shape(self, name: str, engine: str, own: Values, where: Where) -> None:
        path = f"models.{name}"
        if engine in LLAMA and not _is_given(own, "file"):
            self._reading.wrong(
                where, path, f'has no "file", which the engine "{engine}" needs; add file: /path/to/model.gguf'
            )
        if engine not in CUSTOM:
            return
        if not _is_given(own, "size"):
            hint = "add size: and what it needs, like 4GiB (0 where it needs no memory of this machine)"
            self._reading.wrong(where, path, f'has no "size", which gpud cannot find out for a custom engine; {hint}')
        if not _is_given(own, "command") and not _is_given(own, "url"):
            hint = 'add command: [program, argument, "${port}"], or url: for a server that runs anyway'
            self._reading.wrong(where, path, f'has neither "command" nor "url"; {hint}')
        if not _is_given(own, "url"):
            return
        for key, why in (
            (
                "command",
                "a server that gpud starts has no url, and one at a url is not started by gpud; remove one of the two",
            ),
            ("directory", "gpud does not start what runs at a url; remove it"),
            ("environment", "gpud does not start what runs at a url; remove it"),
        ):
            if _is_given(own, key):
                shape = "a map" if key == "environment" else shown(own[key].node)
                self._reading.wrong(own[key].where, f"{path}.{key}", f"{shape}: {why}")

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


def _is_given(values: Mapping[str, Found], name: str) -> bool:
    """True also for a value that was refused: it is not missing."""
    return name in values and values[name].value is not None


def _is_good(found: Found | None) -> bool:
    return found is not None and found.value is not None and found.value is not BROKEN
