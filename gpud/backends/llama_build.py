"""The installed build of llama.cpp: which program is started, which flags it knows, which version it is.

Asks the program itself, once for each build that is met. Starts no engine.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gpud.backends import asking, failures
from gpud.backends.asking import Said
from gpud.backends.llama_flags import Flags
from gpud.core.errors import BackendFailed
from gpud.core.facts import Model
from gpud.core.record import Record

HELP_S = 15.0
"""``--help`` takes 25 ms; a build that starts GPU drivers for it has been seen to take seconds."""


class Program(Record):
    """What is started: ``title`` for messages; ``argv`` finds it, or raises BackendFailed(preflight).

    ``belongings`` are further files without which it would be another build; ``widens`` says that it takes a text to be
    embedded in one batch as large as may be, where llama-server cuts the text.
    """

    title: str
    argv: Callable[[Model], tuple[str, ...]]
    belongings: Callable[[], tuple[str, ...]] = tuple
    widens: bool = False


class _Mark(Record):
    """Which file lies at a path."""

    path: str
    inode: int = 0
    mtime_ns: int = 0
    size_bytes: int = 0


class Installed:
    """What is known of an engine's program. ``environment`` is the engine's own."""

    def __init__(self, name: str, program: Program, environment: Mapping[str, str]) -> None:
        self._name = name
        self._program = program
        self._environment = environment
        self._known: dict[tuple[_Mark, ...], Flags] = {}
        self._versions: dict[tuple[_Mark, ...], str] = {}

    async def flags(self, model: Model, argv: tuple[str, ...]) -> Flags:
        """What the installed build understands; asked once for each build that is met."""
        identity = await asyncio.to_thread(self._identity, argv)
        known = self._known.get(identity)
        if known is not None:
            return known
        with _help_failing(model, argv):
            said = await asking.ask_program((*argv, "--help"), self._environment, HELP_S)
        return self._understood(model, argv, identity, said)

    def flags_now(self, model: Model, argv: tuple[str, ...]) -> Flags:
        """Blocking: the same, for threads."""
        identity = self._identity(argv)
        known = self._known.get(identity)
        if known is not None:
            return known
        with _help_failing(model, argv):
            said = asking.ask_program_now((*argv, "--help"), self._environment, HELP_S)
        return self._understood(model, argv, identity, said)

    def _understood(self, model: Model, argv: tuple[str, ...], identity: tuple[_Mark, ...], said: Said) -> Flags:
        shown = " ".join(argv)
        flags = Flags.parse(said.text)
        lines = tuple(said.text.splitlines()[-20:])
        if not flags.first("--model", "-m"):
            failure = failures.classify(lines)
            why = failure.sentence if failure else failures.last_line(lines) or "it printed nothing"
            hint = failure.hint if failure else ""
            raise _unusable(model, f"{shown} --help ended with status {said.code}: {why}", hint, lines)
        if not flags.says("--api-key", "LLAMA_API_KEY"):
            raise _unusable(model, f"{shown} does not read LLAMA_API_KEY", "install a newer build of llama.cpp", ())
        self._known = {identity: flags}
        return flags

    def _identity(self, argv: tuple[str, ...]) -> tuple[_Mark, ...]:
        """Changes with the program, or with what belongs to it."""
        return tuple(_file_mark(part) for part in (*argv, *self._program.belongings()) if part.startswith("/"))

    def version(self, argv: tuple[str, ...]) -> str:
        """Blocking: the version that it says it is, and which files it lies in; empty when it says none."""
        identity = self._identity(argv)
        known = self._versions.get(identity)
        if known is not None:
            return known
        try:
            said = asking.ask_program_now((*argv, "--version"), self._environment, HELP_S).text
        except (OSError, TimeoutError):
            return ""
        version = next((line.strip() for line in said.splitlines() if line.startswith("version")), "")
        if not version:
            return ""
        marks = " ".join(f"{mark.size_bytes}:{mark.mtime_ns}" for mark in identity)
        self._versions = {identity: f"{self._name} {version} {marks}"}
        return self._versions[identity]


def _file_mark(path: str) -> _Mark:
    try:
        found = Path(path).stat()
    except OSError:
        return _Mark(path)
    return _Mark(path, found.st_ino, found.st_mtime_ns, found.st_size)


@contextmanager
def _help_failing(model: Model, argv: tuple[str, ...]) -> Iterator[None]:
    """What to say of a program that cannot be asked for its flags."""
    shown = " ".join(argv)
    try:
        yield
    except TimeoutError:
        raise _unusable(model, f"{shown} --help did not end within {HELP_S:g} s", "", ()) from None
    except OSError as problem:
        raise _unusable(model, f"{shown} cannot be started: {problem.strerror}", "", ()) from None


def _unusable(model: Model, what: str, hint: str, tail: tuple[str, ...]) -> BackendFailed:
    return BackendFailed(
        f'cannot load "{model.name}": {what}',
        hint=hint or "install a working build of the engine, or correct the engine's binary",
        kind="binary-broken",
        tail=tail,
        preflight=True,
    )
