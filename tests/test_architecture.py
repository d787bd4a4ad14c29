"""The import rules of docs/ARCHITECTURE.md: imports point inwards, siblings are strangers, daemon knows everyone."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "gpud"

ADAPTERS = {"gpus", "catalog", "backends", "processes", "store", "systemd", "shells"}
ADAPTERS |= {"allocator", "aside", "power", "pagecache", "programs", "trial"}
EDGES = {"dbus", "http", "webhook"}

# What each room may import of gpud, beyond itself, core and the package's own version.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "config": set(),
    "log": set(),
    "engine": set(),
    "directories": set(),
    **{adapter: set() for adapter in ADAPTERS},
    **{edge: {"engine"} for edge in EDGES},
    # A model file is sized without the daemon: its header is read, and an engine asked.
    "cli": {"config", "catalog", "backends", "importing"},
    # Other programs' settings become ours: text in, text out, and our own reader has the last word.
    "importing": {"config"},
    # A process of its own, which whoever downloads starts; nobody imports it.
    "pulling": set(),
    # A client over D-Bus as gpudctl is, and with gpudctl's connection.
    "tray": {"cli"},
    # As the tray is, and follows names on a bus as that does.
    "notify": {"cli", "tray"},
    "bridge": set(),
    "mcp": set(),
    # The parts of the composition that are about engines, models on disk, and HTTP.
    "engines": {"config", "backends"},
    "shelves": {"config", "engine"},
    "web": {"config", "engine", "http"},
    # What happens to the machine, told on the system bus, becomes the engine's.
    "machine": {"config", "engine", "dbus", "power", "programs", "trial"},
    # Units with old names: what they stand for is the engine's, and how they are noticed is inotify's.
    "facades": {"engine", "catalog"},
    "daemon": {"config", "log", "engine", "directories", "engines", "facades", "machine", "shelves", "web"}
    | ADAPTERS
    | EDGES,
    # For the day when the daemon cannot be started.
    "reaper": {"log", "directories", "processes", "store", "systemd"},
    "__main__": {"daemon", "reaper"},
    "__init__": set(),
}

PURE = {"collections", "enum", "functools", "heapq", "itertools", "math", "msgspec", "operator", "re", "typing"}
"""All that the core imports of the standard library: nothing that waits, reads, logs or knows the time."""


RECORDS = "gpud.core.record"
"""Where records come from. Dataclasses of their own would take half of the start again."""


def modules(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def dotted(path: Path, top: Path) -> str:
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The part of gpud that a module belongs to: ``gpud.gpus.nvml`` is in ``gpus``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Every import, also those inside of functions: line, dotted name, and whether it happens when the module loads.

    ``from a.b import c`` counts as ``a.b.c``: c may be a module.
    """

    def walk(node: ast.AST, at_load: bool) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name, at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                origin = "." * child.level + (child.module or "")
                yield from ((child.lineno, f"{origin}.{alias.name}", at_load) for alias in child.names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, at_load and not inside and not typing_only)

    yield from walk(ast.parse(path.read_text()), True)


def violations(package: Path) -> list[str]:
    """Every import that the rules do not allow, as a sentence."""
    found = []
    for path in modules(package):
        here = room(dotted(path, package.parent))
        if here not in MAY_IMPORT:
            found.append(f"{path.relative_to(package.parent)}: no rule says what the room {here} may import")
            continue
        for line, name, _ in imports(path):
            where = f"{path.relative_to(package.parent)}:{line}"
            if name.startswith("."):
                found.append(f"{where}: write the whole name instead of {name}")
            elif name == "gpud" or name.startswith("gpud."):
                there = room(name)
                if there not in {here, "core", "__version__", *MAY_IMPORT[here]}:
                    found.append(f"{where}: {here} must not import {there} ({name})")
            elif name.startswith("dataclasses."):
                if dotted(path, package.parent) != RECORDS:
                    found.append(f"{where}: records are made with {RECORDS}, but this imports {name}")
            elif here == "core" and name.split(".")[0] not in PURE:
                found.append(f"{where}: core must stay pure, but imports {name}")
    return found


def load_graph(package: Path) -> dict[str, set[str]]:
    """Which module needs which other one to be loaded before it."""
    known = {dotted(path, package.parent): path for path in modules(package)}
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        needed = graph.setdefault(name, set())
        for _, imported, at_load in imports(path):
            if at_load:
                target = imported if imported in known else imported.rpartition(".")[0]
                if target in known and target != name:
                    needed.add(target)
    return graph


def test_imports_point_inwards() -> None:
    """Each room imports itself, core, and what the table grants it."""
    assert violations(PACKAGE) == []


def test_no_module_needs_itself() -> None:
    """No two modules need each other when they are loaded."""
    try:
        list(TopologicalSorter(load_graph(PACKAGE)).static_order())
    except CycleError as error:
        pytest.fail("modules import each other: " + " → ".join(error.args[1]))


BROKEN = {
    "http/server.py": ("from gpud.store import Store", "http must not import store (gpud.store.Store)"),
    "gpus/nvml.py": ("from gpud.config import Config", "gpus must not import config (gpud.config.Config)"),
    "core/budget.py": ("import asyncio", "core must stay pure, but imports asyncio"),
    "engine.py": ("def f():\n    import gpud.dbus.bus", "engine must not import dbus (gpud.dbus.bus)"),
    "store.py": ("from gpud import processes", "store must not import processes (gpud.processes)"),
    "mcp/tools.py": ("from gpud.engine import Engine", "mcp must not import engine (gpud.engine.Engine)"),
    "log.py": ("from .core import facts", "write the whole name instead of .core.facts"),
    "catalog/found.py": (
        "from dataclasses import field",
        "records are made with gpud.core.record, but this imports dataclasses.field",
    ),
    "surprise.py": ("", "no rule says what the room surprise may import"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_forbidden_import_is_found(tmp_path: Path, name: str) -> None:
    """The rules catch what they are there to catch."""
    source, sentence = BROKEN[name]
    path = tmp_path / "gpud" / name
    path.parent.mkdir(parents=True)
    path.write_text(source + "\n")
    (problem,) = violations(tmp_path / "gpud")
    assert problem.startswith(f"gpud/{name}")
    assert problem.endswith(sentence)


def test_a_cycle_is_found(tmp_path: Path) -> None:
    """Two modules that need each other are found; an import inside a function is not a cycle."""
    package = tmp_path / "gpud" / "core"
    package.mkdir(parents=True)
    (package / "a.py").write_text("from gpud.core import b\n")
    (package / "b.py").write_text("def f():\n    from gpud.core.a import x\n")
    list(TopologicalSorter(load_graph(tmp_path / "gpud")).static_order())
    (package / "b.py").write_text("from gpud.core.a import x\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(load_graph(tmp_path / "gpud")).static_order())
