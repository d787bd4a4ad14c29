"""Makes a Config of what the tables read: applies the defaults and checks what spans several keys."""

from collections.abc import Mapping
from types import MappingProxyType

from gpud.config.doors import http
from gpud.config.found import FoundModels
from gpud.config.given import Given, unused
from gpud.config.kinds import Reading
from gpud.config.limits import limits
from gpud.config.models import Models
from gpud.config.records import (
    AlertsConfig,
    BusConfig,
    Config,
    EngineConfig,
    GiveWayConfig,
    IdleConfig,
    LoggingConfig,
    PrefetchConfig,
    RegistryConfig,
    SuspendConfig,
)
from gpud.config.schema import ENGINE, MODEL, ROOT
from gpud.config.sections import OLLAMA, Values
from gpud.config.source import Node, shown
from gpud.core.facts import Model, StopTimes


def build(
    root: Node, reading: Reading, *, complete: bool, sources: tuple[str, ...] = (), missing: str = ""
) -> Config | None:
    """The configuration, or ``None`` when there are problems, all of which are in ``reading`` then.

    ``complete`` False says that a part could not be read: what seems to be missing may stand there.
    """
    if not complete:
        return None
    top = Given(ROOT, ROOT.read(root, "", reading), reading)
    engines = top.section("engines").values
    idle_timeout_s = top.section("idle")["timeout"]
    order = top.section("scheduler")["backend_order"]
    resolver = Models(
        reading, top.section("defaults").values, engines, top.section("stop").values, idle_timeout_s, order
    )
    models = resolver.all(top.section("models").values)
    registry = RegistryConfig(**top.section("registry").fields())
    found = FoundModels(resolver, registry.most_context)
    config = Config(
        models=MappingProxyType(models),
        overrides=MappingProxyType(resolver.written_overrides()),
        found=found.make,
        registry=registry,
        engines=MappingProxyType(_engines(engines, reading)),
        limits=limits(top, reading),
        idle_timeout_s=idle_timeout_s,
        stop=StopTimes(**top.section("stop").fields()),
        backend_order=order,
        base_directory=top.section("storage")["base_directory"],
        alerts=AlertsConfig(**top.section("alerts").fields()),
        prefetch=PrefetchConfig(**top.section("prefetch").fields()),
        idle=IdleConfig(**top.section("idle").fields(IdleConfig)),
        suspend=SuspendConfig(**top.section("suspend").fields(SuspendConfig)),
        give_way=GiveWayConfig(**top.section("give_way").fields(GiveWayConfig)),
        logging=LoggingConfig(**top.section("logging").fields()),
        http=http(
            top.section("http"), _names(top.section("models").values, models), reading, more_are_found=registry.enable
        ),
        bus=BusConfig(**top.section("bus").fields()),
        sources=sources,
        missing=missing,
    )
    return None if reading.problems else config


def _names(given: Values, models: Mapping[str, Model]) -> list[str]:
    """All names and aliases; also of models with problems of their own, where their names are known."""
    return [*given, *(alias for model in models.values() for alias in model.aliases)]


def _engines(given: Values, reading: Reading) -> dict[str, EngineConfig]:
    engines: dict[str, EngineConfig] = {}
    for name, found in given.items():
        if not isinstance(found.value, dict):
            continue
        path = f"engines.{name}"
        for key in ENGINE.keys:
            if key.name in found.value and not key.used_by(name):
                unused(key, found.value[key.name], path, (name,), reading)
        _check_keys_of_defaults(found.value, name, path, reading)
        engine = Given(ENGINE, found.value, reading)
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
            unused(key, found.value[key.name], f"{path}.defaults", (name,), reading)
