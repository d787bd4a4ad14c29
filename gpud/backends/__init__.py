"""Which engines there are. Knows them by name and imports one only when it is made; never talks to any.

A package outside gpud adds an engine with an entry point in the group ``gpud.backends``: its name is the engine's name
in the configuration, its object a factory like those in :data:`BACKENDS`.
"""

from collections.abc import Callable
from importlib import import_module

from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.ports import Backend, Launcher

__all__ = ["BACKENDS", "GROUP", "EngineOptions", "Factory", "make"]

Factory = Callable[[EngineOptions, Launcher], Backend]

GROUP = "gpud.backends"


def _lazy(module: str, name: str) -> Factory:
    """A factory that imports its module when it is first called: most machines use one engine of the seven."""

    def factory(options: EngineOptions, launcher: Launcher) -> Backend:
        make_backend: Factory = getattr(import_module(module), name)
        return make_backend(options, launcher)

    return factory


BACKENDS: dict[str, Factory] = {
    "llama_server": _lazy("gpud.backends.llama_server", "LlamaServer"),
    "embedded": _lazy("gpud.backends.embedded", "embedded"),
    "llama_cpp": _lazy("gpud.backends.llama_cpp", "LlamaCpp"),
    "ollama": _lazy("gpud.backends.ollama", "Ollama"),
    "vllm": _lazy("gpud.backends.vllm", "vllm"),
    "tgi": _lazy("gpud.backends.tgi", "tgi"),
    "custom": _lazy("gpud.backends.custom", "Custom"),
}
"""For each row of :data:`gpud.core.engines.ENGINES`."""


def make(name: str, options: EngineOptions, launcher: Launcher) -> Backend:
    """The backend for an engine. Raises BackendFailed when neither gpud nor an installed package has it."""
    factory = BACKENDS.get(name)
    if factory is not None:
        return factory(options, launcher)
    try:
        return _from_outside(name)(options, launcher)
    except BackendFailed:
        raise
    except Exception as problem:
        raise BackendFailed(
            f'cannot use engine "{name}": its package cannot make it: {type(problem).__name__}: {problem}',
            hint=f'see its manual, or take "{name}" out of the configuration',
            kind="engine-broken",
            preflight=True,
        ) from problem


def _from_outside(name: str) -> Factory:
    # Imported here: reading the metadata of every installed package costs tens of milliseconds that a daemon with
    # only built-in engines shall not pay.
    from importlib.metadata import entry_points

    found = entry_points(group=GROUP)
    for entry in found:
        if entry.name != name:
            continue
        try:
            factory: Factory = entry.load()
        except Exception as problem:
            package = entry.dist.name if entry.dist is not None else entry.value
            raise BackendFailed(
                f'cannot use engine "{name}": its package "{package}" cannot be imported: '
                f"{type(problem).__name__}: {problem}",
                hint=f'reinstall "{package}" or take the engine out of the configuration',
                kind="engine-broken",
                preflight=True,
            ) from problem
        return factory
    outside = sorted(found.names)
    known = ", ".join([*BACKENDS, *outside])
    raise BackendFailed(
        f'there is no engine "{name}"; engines are {known}',
        hint=f'correct "engine:" in the configuration, or install the package that brings "{name}"',
        kind="no-such-engine",
        preflight=True,
    )
