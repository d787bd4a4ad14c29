"""Nothing is there for nothing: no test that cannot fail, no setting that nobody reads, no error that nobody raises."""

import ast
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from gpud.config.records import Config
from gpud.core import errors, events
from gpud.core.errors import GpudError

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "gpud"
TESTS = TOP / "tests"

Function = ast.FunctionDef | ast.AsyncFunctionDef

FAILS = {"raises", "fail", "warns"}
"""What pytest has beside ``assert``."""


# Tests ---------------------------------------------------------------------------------------------------------------


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def called(nodes: Iterable[ast.AST]) -> set[str]:
    """The names of what is called, whosever they are."""
    found = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = (one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in found)
    return set(filter(None, names))


def looks(function: Function) -> bool:
    """Whether it looks at something itself, and does not hold what is always true for a result."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant | ast.JoinedStr | ast.Tuple):
            return True
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Attribute) and node.attr in FAILS and ast.unparse(node.value) == "pytest":
            return True
    return False


def unfailing(sources: Iterable[str]) -> list[str]:
    """The names of tests that look at nothing, and call no function of the tests that does."""
    found = [(one.name, looks(one), called(ast.walk(one))) for source in sources for one in functions(source)]
    looking = {name for name, does_look, _ in found if does_look}
    while more := {name for name, _, calls in found if name not in looking and calls & looking}:
        looking |= more
    return [
        name for name, does_look, calls in found if name.startswith("test_") and not does_look and not calls & looking
    ]


def test_every_test_can_fail() -> None:
    """A test asserts, or calls one of the tests' own functions that does."""
    assert unfailing(path.read_text() for path in sorted(TESTS.rglob("*.py"))) == []


@pytest.mark.parametrize(
    "body",
    ["run()", "x = 1", "assert True", 'assert ("is it so?", 1)', 'assert "always"', "calls_nothing_that_looks()"],
)
def test_a_test_that_cannot_fail_is_found(body: str) -> None:
    """The rule catches what it is there to catch, and lets helpers look."""
    helpers = "def sees():\n    assert run()\ndef calls_nothing_that_looks():\n    run()\n"
    assert unfailing([helpers, f"def test_it():\n    {body}\n"]) == ["test_it"]
    assert unfailing([helpers, f"def test_it():\n    {body}\n    sees()\n"]) == []


# Settings, errors, kinds of news -------------------------------------------------------------------------------------


def sources(*, without: str = "") -> Iterator[ast.AST]:
    """The package, without one of its rooms."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != without:
            yield from ast.walk(ast.parse(path.read_text()))


def settings(record: type[msgspec.Struct], known: set[object]) -> Iterator[tuple[str, str]]:
    """Each field of a configuration and of the records in it: whose it is, and its name."""
    known.add(record)
    for field in msgspec.structs.fields(record):
        yield record.__name__, field.name
        for kind in inside(field.type):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in known:
                yield from settings(kind, known)


def inside(kind: object) -> Iterator[object]:
    """A type and all that it is made of."""
    yield kind
    for part in get_args(kind):
        yield from inside(part)


def test_every_setting_is_read() -> None:
    """What can be configured is looked at by somebody else than those who read, check and show configurations."""
    # A record of the configuration may answer questions about itself.
    own = ast.walk(ast.parse((PACKAGE / "config" / "records.py").read_text()))
    read = {
        node.attr
        for node in (*sources(without="config"), *own)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    known = list(settings(Config, set()))
    assert {("DoorLimits", "header_s"), ("QueueLimits", "turn_s"), ("EngineSettings", "context")} <= set(known)
    assert [f"{record}.{name}" for record, name in known if name not in read] == []


def test_every_error_is_raised() -> None:
    """And every kind of news told, and every action, event and outcome of the core made somewhere."""
    nodes = list(sources())
    names = called(nodes)
    known = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GpudError)]
    records = [kind for _, kind in inspect.getmembers(events, inspect.isclass) if issubclass(kind, msgspec.Struct)]
    leaves = [kind for kind in (*known, *records) if not kind.__subclasses__()]
    assert len(leaves) > 60
    assert [kind.__name__ for kind in leaves if kind.__name__ not in names] == []
    told = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    assert [kind.name for kind in events.Kind if not {f"Kind.{kind.name}", f"events.Kind.{kind.name}"} & told] == []
