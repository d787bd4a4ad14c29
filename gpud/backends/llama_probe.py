"""Asks llama.cpp itself what a model would take: a dry run that is ended as soon as it has said so, and loads nothing.

The engine is started as for a load, listens nowhere that a load would, and prints its record before it reads a weight.
One thing it does allocate in a dry run: the state of a recurrent or hybrid model, which on a GPU is real memory. Who
asks for a dry run sees to it that no such model is on a GPU.
"""

import asyncio
import os
import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpud.backends import asking, failures, files, runner
from gpud.backends.llama_flags import ALL_LAYERS, Flags
from gpud.backends.llama_record import RecordReader, plain
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Exit
from gpud.core.plan import Plan
from gpud.core.ports import Child, Command, Launcher, Stream
from gpud.core.quote import Estimate
from gpud.core.record import Record

PROBE_S = 10.0
"""The record comes 20 to 40 ms after the start. A driver that has to be woken first, or a disk that has to spin up to
give the header, takes seconds; an engine that takes longer than this will not tell."""

LONGEST_LINE_BYTES = 64 << 10

MOST_LINES = 50_000
"""A build that says all that it can says a few thousand before its record."""

LONGEST_SOCKET_BYTES = 107
"""The kernel's limit for the path of a socket."""

_LAYER_FLAGS = frozenset({"-ngl", "--gpu-layers", "--n-gpu-layers"})


def telling(argv: Sequence[str], flags: Flags) -> tuple[str, ...]:
    """The same command line, of an engine that tells its record before it loads, as lines of JSON where it can.

    Layers that were left to the engine are pinned: a dry run says what the model takes, not what fits now.
    """
    given = list(argv)
    for index, word in enumerate(given[1:], 1):
        if word == "auto" and given[index - 1] in _LAYER_FLAGS:
            given[index] = "all" if flags.says(given[index - 1], "'all'") else ALL_LAYERS
    for value, names in (("on", ("--fit", "-fit")), ("", ("--log-jsonl",))):
        name = flags.first(*names)
        if name:
            given += [name, value] if value else [name]
    # Named levels came with the table, which is told at the fourth.
    if flags.says("--verbosity", "4:"):
        given += ["--verbosity", "4"]
    return tuple(given)


def reader_for(plan: Plan) -> RecordReader:
    """Blocking: looks at the sizes of the files that no record counts."""
    adapters = sum(files.size_bytes(Path(path)) or 0 for path in plan.adapters)
    projector = (files.size_bytes(Path(plan.mmproj)) or 0) if plan.mmproj else 0
    return RecordReader(plan, adapter_bytes=adapters, projector_bytes=projector)


async def through(
    launcher: Launcher, command: Command, endpoint: Endpoint, reader: RecordReader, *, limit_s: float = PROBE_S
) -> Estimate:
    """A dry run as a child of the daemon. Nothing of it stays, whatever happens. Raises BackendFailed."""
    ear = _Ear(reader)
    enough = asyncio.Event()

    def hear(stream: Stream, text: str) -> bool:  # noqa: ARG001 - builds differ in which stream they use
        if ear.hear(text):
            enough.set()
        return True

    child = await runner.spawn(launcher, command, hear)
    ending = asyncio.ensure_future(child.wait())
    listening = asyncio.ensure_future(enough.wait())
    try:
        waited: set[asyncio.Future[Any]] = {listening, ending}
        await asyncio.wait(waited, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        return ear.result(command.argv[0], ending.result() if ending.done() else None, limit_s)
    finally:
        listening.cancel()
        await runner.to_its_end(_end(child, ending))
        runner.remove_socket(endpoint)


async def _end(child: Child, ending: "asyncio.Task[Exit]") -> None:
    await child.kill()
    await ending


def alone(
    argv: Sequence[str], environment: Mapping[str, str], reader: RecordReader, *, limit_s: float = PROBE_S
) -> Estimate:
    """Blocking: a dry run without a daemon. Nothing of it stays, whatever happens. Raises BackendFailed."""
    ear = _Ear(reader)
    held: dict[int, bytes] = {}
    left_bytes, left_lines = asking.LARGEST_ANSWER_BYTES, MOST_LINES

    def hear(fd: int, data: bytes) -> bool:
        nonlocal left_bytes, left_lines
        *lines, rest = (held.get(fd, b"") + data).split(b"\n")
        held[fd] = rest[:LONGEST_LINE_BYTES]
        left_bytes -= len(data)
        left_lines -= len(lines)
        return any(ear.hear(line.decode(errors="replace")) for line in lines) or min(left_bytes, left_lines) < 0

    ended: Exit | None = None
    try:
        # Its stdin ends when we do, and the engine with it, should we be killed.
        ended = Exit(0, asking.converse(argv, environment, hear, limit_s, lease=True))
    except TimeoutError:
        pass
    except OSError as problem:
        raise BackendFailed(
            f"cannot start {argv[0]}: {problem.strerror or problem}",
            hint="correct --binary, or let --formula calculate without it",
            kind="binary-broken",
            preflight=True,
        ) from None
    for rest in held.values():
        ear.hear(rest.decode(errors="replace"))
    if min(left_bytes, left_lines) < 0 and not ear.done:
        raise BackendFailed(
            f"cannot learn from {argv[0]} what the model takes: it printed no record within {MOST_LINES} lines and "
            f"{asking.LARGEST_ANSWER_BYTES >> 20} MiB",
            hint="see that it is a llama-server, or let --formula calculate without it",
            kind="no-record",
        )
    return ear.result(argv[0], ended, limit_s)


class _Ear:
    """Hears what an engine says until it has told its record, or shows that it will not."""

    def __init__(self, reader: RecordReader) -> None:
        self.done = False
        self._reader = reader
        self._told: Estimate | None = None
        self._tail: deque[str] = deque(maxlen=40)

    def hear(self, text: str) -> bool:
        """True when there is nothing more to be heard."""
        if self.done:
            return True
        if text:
            self._tail.append(text)
        self._told = self._reader.line(text)
        self.done = self._told is not None or self._reader.missed
        return self.done

    def result(self, program: str, ended: Exit | None, limit_s: float) -> Estimate:
        """What was told until now. Raises BackendFailed."""
        told = self._told or self._reader.so_far()
        if told is not None:
            return told
        raise _untold(program, ended, tuple(self._tail), limit_s, missed=self._reader.missed)


def _untold(program: str, ended: Exit | None, tail: Sequence[str], limit_s: float, *, missed: bool) -> BackendFailed:
    tail = tuple(plain(line) for line in tail)
    start = f"cannot learn from {program} what the model takes"
    if ended is None and not missed:
        said = failures.last_line(tail)
        return BackendFailed(
            f"{start}: it printed no record within {limit_s:g} s" + (f"; its last line was: {said}" if said else ""),
            hint="see that it is a llama-server of 2026 or later, or let --formula calculate without it",
            kind="timeout",
            tail=tail,
        )
    how = "its dry run failed" if missed or ended is None else f"it {ended.describe()}"
    failure = failures.classify(tail)
    if failure is not None:
        hint = "correct the arguments, or take another build" if failure.kind == "bad-flag" else failure.hint
        return BackendFailed(f"{start}: {how}: {failure.sentence}", hint=hint, kind=failure.kind, tail=tail)
    said = failures.telling_line(tail).removeprefix("E ")
    return BackendFailed(
        f"{start}: {how} and " + (f"said: {said}" if said else "said nothing"),
        hint="see what it says when it is started by hand, or let --formula calculate without it",
        kind="exited",
        tail=tail,
    )


class DryRun(Record):
    """An engine that is asked outside of the daemon: all that it is started with. ``plan`` is read from the same."""

    program: tuple[str, ...]
    file: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    plan: Plan

    def ask(self, folder: Path) -> Estimate:
        """Blocking. ``folder`` is a private one for its socket. Raises BackendFailed."""
        flags = self._flags()
        argv = telling((*self.program, *self.arguments), flags)
        argv += (flags.first("--model", "-m"), self.file)
        socket = str(folder / "probe.sock")
        by_path = flags.says("--host", ".sock") and len(os.fsencode(socket)) <= LONGEST_SOCKET_BYTES
        argv += ("--host", socket) if by_path else ("--host", "127.0.0.1", "--port", "0")
        if flags.first("--offline"):
            argv += ("--offline",)
        environment = {
            **self.environment,
            "LLAMA_API_KEY": runner.new_key(),
            "LLAMA_SERVER_ROUTER_PORT": "1",
            "GGML_NO_BACKTRACE": "1",
        }
        try:
            return alone(argv, environment, reader_for(self.plan))
        finally:
            runner.remove_socket(Endpoint(socket=socket))

    def _flags(self) -> Flags:
        shown = shlex.join(self.program)
        try:
            said = asking.ask_program_now((*self.program, "--help"), {}, PROBE_S)
        except TimeoutError:
            raise self._unusable(f"{shown} --help did not end within {PROBE_S:g} s") from None
        except OSError as problem:
            raise self._unusable(f"{shown} cannot be started: {problem.strerror or problem}") from None
        flags = Flags.parse(said.text)
        if flags.first("--model", "-m"):
            return flags
        lines = said.text.splitlines()[-20:]
        failure = failures.classify(lines)
        why = failure.sentence if failure else failures.last_line(lines) or "it printed nothing"
        raise self._unusable(f"{shown} --help ended with status {said.code}: {why}")

    def _unusable(self, what: str) -> BackendFailed:
        return BackendFailed(
            f'cannot ask for "{Path(self.file).name}": {what}',
            hint="name a llama-server with --binary, or let --formula calculate without one",
            kind="binary-broken",
            preflight=True,
        )
