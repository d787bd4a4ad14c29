"""Old names of units: what small units such as ``llamacpp.service`` are told, and what their stopping means here.

A facade is a shell script (``units/facades/facade``) that runs in such a unit: a line that it reads from its pipe
becomes a line in the unit's journal, or the unit's status. gpud writes into the pipe and never waits for it. All that
passes between the two are files in one folder, which outlives both, so that either may be restarted:

- ``NAME`` is the pipe of a facade that runs. It appears in one step, with its reader in place.
- ``NAME.stopped`` says that the unit was stopped: what it stands for is unloaded and refused until it is started. gpud
  writes into it which models were unloaded.
- ``NAME.again`` is that list after the unit was started again: gpud loads them and takes the file away.
- ``NAME.bye`` is a pipe in which whoever stops the unit waits for the word that it is done.
"""

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from gpud.catalog.inotify import CLOSE_WRITE, DELETE, MOVED_TO, ONLY_FOLDERS, Inotify
from gpud.core import statuses
from gpud.core.counts import plural
from gpud.core.engines import Family, of_family
from gpud.core.errors import GpudError
from gpud.core.events import Kind, Level, Notice, Outcome
from gpud.core.facts import Caller, ModelStatus, Snapshot, State
from gpud.core.ports import OutputSink, Stream
from gpud.core.record import Record
from gpud.engine import Engine

log = logging.getLogger(__name__)

MIB = 1 << 20

KEPT_BYTES = 256 << 10
"""What is kept for a facade that does not read at the moment; what comes beyond is left out, and said."""

PRIORITIES = {Level.ERROR: 3, Level.WARNING: 4, Level.INFO: 6, Level.DEBUG: 7}


class Role(Record):
    """What one name stands for: engines, or kinds of messages, or a door."""

    engines: frozenset[str] = frozenset()
    kinds: frozenset[Kind] = frozenset()
    door: str = ""


LLAMA = Role(frozenset(of_family(Family.LLAMA_CPP)))

ROLES = {
    "llamacpp": LLAMA,
    "llamacpp-turbo": LLAMA,
    "llama-cpp-server": LLAMA,
    "ollama": Role(frozenset(of_family(Family.OLLAMA))),
    "ollama-gpu-idle-monitor": Role(kinds=frozenset((Kind.IDLE,))),
    "ml-vram-monitor": Role(
        kinds=frozenset(
            (Kind.VRAM_HIGH, Kind.VRAM_NORMAL, Kind.GAVE_WAY, Kind.EVICTED, Kind.GPU_PROBLEM, Kind.MEMORY_LATE)
        )
    ),
    "ml-offload-api": Role(
        kinds=frozenset((Kind.DOOR_OPENED, Kind.DOOR_FAILED, Kind.CONFIG_RELOADED, Kind.CONFIG_REJECTED)),
        door="management",
    ),
}
"""What the unit of each name shows, and what is closed or unloaded when it is stopped."""

SAID_OF_MODELS = frozenset(
    (
        Kind.MODEL_LOADED,
        Kind.MODEL_UNLOADED,
        Kind.MODEL_ADOPTED,
        Kind.LOAD_FAILED,
        Kind.LOAD_REFUSED,
        Kind.IDLE,
        Kind.EVICTED,
        Kind.ENGINE_CRASHED,
        Kind.ENGINE_GIVEN_UP,
        Kind.ENGINE_KILLED,
    )
)
"""What gpud itself has to say in the journal of a unit that stands for engines."""


class Pipe:
    """The writing end of one facade's pipe. Never waits; what a slow reader cannot take is kept within a bound."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where nobody reads it."""
        self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        if not stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "it is no pipe", str(path))
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._left_out = 0
        self._status = ""
        self.gone = False

    def say(self, priority: int, text: str) -> None:
        """Each line of the text as one of the unit's."""
        for line in text.splitlines() or [""]:
            self._put(f"-<{priority}>{line}")

    def status(self, text: str) -> None:
        """The unit's status from now on."""
        if text != self._status:
            self._status = text
            self._put(f"={text}")

    def close(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._loop.remove_writer(self._fd)
        os.close(self._fd)

    def _put(self, line: str) -> None:
        if self.gone:
            return
        data = line.encode("utf-8", "replace").replace(b"\0", b"") + b"\n"
        if len(self._waiting) + len(data) > KEPT_BYTES:
            self._left_out += 1
            return
        idle = not self._waiting
        self._waiting += data
        if idle:
            self._write()
            if self._waiting and not self.gone:
                self._loop.add_writer(self._fd, self._write)

    def _write(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting)]
        except BlockingIOError:
            return
        except OSError:
            # Its reader was killed: systemd starts another one, which makes a pipe of its own.
            self.close()
            return
        self._loop.remove_writer(self._fd)
        if self._left_out:
            count, self._left_out = self._left_out, 0
            self._put(
                f"-<4>{plural(count, 'line is', 'lines are')} missing here: "
                "they came faster than the journal took them; see gpud.service"
            )


class Facades:
    """Belongs to the loop. Fulfils ``ports.OutputSink``: hands every line on to ``sink``, and to whom it concerns."""

    def __init__(self, folder: Path, sink: OutputSink, close_door: Callable[[], Awaitable[None]]) -> None:
        """``close_door`` is called when :meth:`closed_doors` has changed."""
        self._folder = folder
        self._sink = sink
        self._close_door = close_door
        self._pipes: dict[str, Pipe] = {}
        self._stopped: frozenset[str] = frozenset()
        self._engine: Engine | None = None
        self._inotify: Inotify | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._owner = Caller(owner="facades", uid=os.geteuid(), label="systemctl")

    # What others ask -------------------------------------------------------------------------------------------------

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        self._sink.line(model=model, engine=engine, stream=stream, pid=pid, text=text)
        for name, pipe in self._pipes.items():
            if engine in ROLES[name].engines:
                pipe.say(PRIORITIES[Level.INFO], text)

    def refuses(self, engine: str) -> tuple[str, str] | None:
        """Why no model is loaded with this engine now, and what to do; None where it may be."""
        stopped = sorted(name for name in self._stopped if engine in ROLES[name].engines)
        if not stopped:
            return None
        return f'"{stopped[0]}.service" was stopped, and with it the engine "{engine}"', f"systemctl start {stopped[0]}"

    def closed_doors(self) -> frozenset[str]:
        """The doors that were stopped."""
        return frozenset(ROLES[name].door for name in self._stopped if ROLES[name].door)

    def listen(self, outcomes: tuple[Outcome, ...]) -> None:
        """Subscribe this to the engine."""
        if not self._pipes or self._engine is None:
            return
        snapshot = self._engine.snapshot()
        for outcome in outcomes:
            if isinstance(outcome, Notice):
                about = statuses.status_of(snapshot.models, outcome.model)
                self._tell(outcome, "" if about is None else about.model.engine)
        for name, pipe in self._pipes.items():
            pipe.status(self._status(name, snapshot))

    def notice(self, notice: Notice) -> None:
        """Something that the daemon tells besides what the engine does."""
        self._tell(notice, "")

    def _tell(self, notice: Notice, engine: str) -> None:
        for name, pipe in self._pipes.items():
            role = ROLES[name]
            if notice.kind in role.kinds or (notice.kind in SAID_OF_MODELS and engine in role.engines):
                pipe.say(PRIORITIES[notice.level], "\n".join((notice.message, *notice.detail)))

    # Life ------------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Which units are stopped, before anything is loaded."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            names = [path.name for path in self._folder.iterdir()]
        except OSError as problem:
            log.warning("units with old names cannot be served: %s", problem)
            return
        self._stopped = _stopped(names)

    def begin(self, engine: Engine) -> None:
        """From now on facades are served, those too that have been waiting."""
        self._engine = engine
        try:
            self._inotify = Inotify()
            self._inotify.add(str(self._folder), CLOSE_WRITE | MOVED_TO | DELETE | ONLY_FOLDERS)
            names = sorted(path.name for path in self._folder.iterdir())
        except OSError as problem:
            log.warning("units with old names cannot be served: %s", problem)
            self._forget_inotify()
            return
        asyncio.get_running_loop().add_reader(self._inotify.fd, self._changed)
        # Those too that were stopped since the first look, while gpud was starting.
        self._stopped |= _stopped(names)
        for name in names:
            self._appeared(name)
        for name in sorted(self._stopped):
            # It was stopped while no gpud was there, or an earlier one died meanwhile.
            self._do(self._empty(name))

    async def close(self) -> None:
        self._forget_inotify()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pipe in self._pipes.values():
            pipe.status("gpud does not run: systemctl start gpud")
            pipe.close()
        self._pipes.clear()

    def _forget_inotify(self) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None

    # What happens in the folder --------------------------------------------------------------------------------------

    def _changed(self) -> None:
        assert self._inotify is not None
        for event in self._inotify.read():
            name = event.name.removesuffix(".stopped")
            if name != event.name and event.mask & CLOSE_WRITE:
                self._stop(name)
            elif name != event.name and event.mask & DELETE:
                self._may_again(name)
            elif event.mask & MOVED_TO:
                self._appeared(event.name)

    def _appeared(self, name: str) -> None:
        """A facade runs: its unit is not stopped any more."""
        if name not in ROLES:
            return
        if (before := self._pipes.pop(name, None)) is not None:
            before.close()
        try:
            pipe = Pipe(self._folder / name)
        except OSError as problem:
            # Its facade was killed, or has been stopped again.
            log.debug("nobody reads the pipe of %s.service: %s", name, problem)
            return
        self._pipes[name] = pipe
        self._may_again(name)
        assert self._engine is not None
        pipe.status(self._status(name, self._engine.snapshot()))
        self._load_again(name)

    def _may_again(self, name: str) -> None:
        if name in self._stopped and not (self._folder / f"{name}.stopped").exists():
            self._stopped -= {name}
            if ROLES[name].door:
                self._do(self._close_door())

    def _load_again(self, name: str) -> None:
        path = self._folder / f"{name}.again"
        try:
            models = path.read_text().splitlines()
            path.unlink()
        except FileNotFoundError:
            return
        assert self._engine is not None
        for model in models:
            try:
                self._engine.load(model, self._owner)
            except GpudError as problem:
                log.warning('"%s" is not loaded again with %s.service: %s', model, name, problem.text)

    def _stop(self, name: str) -> None:
        # gpud's own writing of the list comes back as an event; nobody waits for an answer then.
        if name in ROLES and (name not in self._stopped or (self._folder / f"{name}.bye").exists()):
            self._stopped |= {name}
            self._do(self._empty(name))

    async def _empty(self, name: str) -> None:
        """Unload what the unit stands for, and say so to whoever waits."""
        problems = []
        if ROLES[name].door:
            await self._close_door()
        models = self._models(name)
        for model in models:
            assert self._engine is not None
            try:
                job = self._engine.unload(model, self._owner, others=True)
                ended = await self._engine.wait(job)
            except GpudError as problem:
                problems.append(problem.text)
            else:
                if ended.error is not None:
                    problems.append(ended.error.text)
        if models:
            (self._folder / f"{name}.stopped").write_text("".join(f"{model}\n" for model in models))
        answer = "; ".join(problems) or _done(ROLES[name], models)
        bye = self._folder / f"{name}.bye"
        with contextlib.suppress(OSError):
            fd = os.open(bye, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                os.write(fd, f"{' '.join(answer.split())[:2000]}\n".encode())
            finally:
                os.close(fd)

    def _models(self, name: str) -> list[str]:
        """The models that are loaded, or about to be, with an engine of this unit."""
        assert self._engine is not None
        return [
            status.model.name
            for status in statuses.lively(self._engine.snapshot().models)
            if status.model.engine in ROLES[name].engines and (status.state.has_engine() or status.waiting)
        ]

    def _do(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("internal error: a unit with an old name", exc_info=task.exception())

    # What a unit shows -----------------------------------------------------------------------------------------------

    def _status(self, name: str, snapshot: Snapshot) -> str:
        role = ROLES[name]
        if role.engines:
            shown = [
                _shown(status) for status in statuses.lively(snapshot.models) if status.model.engine in role.engines
            ]
            return "; ".join(filter(None, shown)) or "nothing loaded"
        if name == "ml-vram-monitor":
            return _memory(snapshot)
        if name == "ollama-gpu-idle-monitor":
            idle_s = snapshot.idle_timeout_s
            if not idle_s:
                return "idle timeout never"
            return f"idle timeout {idle_s:g}s, checked when it ends: no polling"
        return f"the door {role.door} is served by gpud"


def _stopped(files: Iterable[str]) -> frozenset[str]:
    """The units of which these files say that they are stopped."""
    return frozenset(ROLES.keys() & {name.removesuffix(".stopped") for name in files if name.endswith(".stopped")})


def _done(role: Role, unloaded: list[str]) -> str:
    """What the stop of a unit came to."""
    if role.door:
        return f"the door {role.door} is closed"
    if not role.engines:
        return "nothing has to end: gpud goes on"
    return f"unloaded: {', '.join(unloaded)}" if unloaded else "nothing was loaded"


def _shown(status: ModelStatus) -> str:
    if status.state is State.COLD:
        return ""
    if not status.state.has_engine():
        return f"failed: {status.model.name}"
    size = status.used_bytes if status.used_bytes is not None else status.need_bytes
    return f"{status.state}: {status.model.name} {size // MIB} MiB"


def _memory(snapshot: Snapshot) -> str:
    shown = [
        f"{gpu.sample.name}: {gpu.sample.used_bytes // MIB} of {gpu.sample.total_bytes // MIB} MiB used"
        for gpu in snapshot.gpus
        if gpu.sample.used_bytes is not None and gpu.sample.total_bytes
    ]
    return "; ".join(shown) or "no GPU"
