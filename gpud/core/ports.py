"""What the engine needs from the outside, as protocols. Adapters fulfil them; ``daemon.py`` hands them in.

An adapter never knows another adapter: a backend starts processes through the :class:`Launcher` it is given.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeVar, runtime_checkable

from gpud.core.catalogue import Entry, Finding, Found, Roots
from gpud.core.events import Logged
from gpud.core.facts import Endpoint, Exit, GpuSample, Model, StopTimes
from gpud.core.learning import Measured, Residual
from gpud.core.modelfile import ModelFile
from gpud.core.plan import Plan
from gpud.core.quote import Estimate, Share
from gpud.core.record import Record, field, repr_without

T = TypeVar("T")

# Processes -----------------------------------------------------------------------------------------------------------


class Stream(StrEnum):
    OUT = "out"
    ERR = "err"


LineReader = Callable[[Stream, str], bool]
"""Sees each line of a child's output first; returns True to keep the line out of the journal (protocol lines)."""


class Command(Record):
    """A process to be started, complete: nothing is added by a shell.

    ``environment`` is laid over what is left of the daemon's own environment after scrubbing. ``lease`` asks for a
    stdin
    pipe that stays open as long as gpud (or systemd's fd store on its behalf) lives: the engine ends itself at its end.
    ``unit`` is the unique name of this start (``tiny-3``): the cgroup leaf, the state record and the stored fds carry
    it.
    """

    unit: str
    model: str
    engine: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = ""
    lease: bool = False

    def __repr__(self) -> str:
        return repr_without(self, "environment")


class ChildRecord(Record):
    """A child's identity, enough for a restarted daemon to find it again or to know that it is gone.

    A PID alone proves nothing: ``start_time`` (clock ticks since boot, field 22 of /proc/PID/stat) makes it unique.
    """

    unit: str
    model: str
    engine: str
    pid: int
    start_time: int
    cgroup: str = ""


class Child(Protocol):
    """A running process and everything it forked."""

    @property
    def pid(self) -> int: ...

    @property
    def record(self) -> ChildRecord: ...

    def alive(self) -> bool:
        """Whether its main process has not ended yet. Engines of other packages ask this while they wait."""

    def tail(self) -> tuple[str, ...]:
        """The last lines of its output, oldest first."""

    def pids(self) -> frozenset[int]:
        """The process and its descendants that live now."""

    async def wait(self) -> Exit:
        """Returns when the main process has ended and what it left behind has been ended too. Many may wait."""

    async def stop(
        self,
        times: StopTimes,
        *,
        ask: Callable[[], Awaitable[None]] | None = None,
        on_kill: Callable[[], None] | None = None,
    ) -> Exit:
        """TERM, after ``term_s`` TERM again, after ``second_term_s`` kill the whole tree. Safe to call twice.

        ``ask`` replaces the first TERM where an engine has a politer way (it still counts as the first rung).
        ``on_kill`` is told when the polite rungs were in vain.
        """

    async def kill(self) -> Exit:
        """Kill the whole tree now."""

    def close_lease(self) -> None:
        """Close the stdin pipe."""


class Launcher(Protocol):
    """Starts processes and finds those that an earlier daemon started."""

    async def spawn(self, command: Command, on_line: LineReader | None = None) -> Child:
        """Raises BackendFailed(preflight=True) when the program cannot be executed."""

    def adopt(self, record: ChildRecord, on_line: LineReader | None = None) -> Child | None:
        """The child of an earlier daemon, or None when that process is gone (a stranger with its PID is not
        touched)."""

    async def end(self, record: ChildRecord) -> None:
        """End what is left of a recorded child, if it is still that child; returns when it is gone."""

    async def end_strangers(self, known_units: Collection[str]) -> tuple[str, ...]:
        """End what lives in cgroup leaves that no record names; returns their names."""

    def family(self, pid: int) -> frozenset[int]:
        """A process and all that descends from it, as far as they live. Reads /proc: for threads."""

    def socket_path(self, unit: str) -> str:
        """A path for this start's private Unix socket, short enough for the kernel; a stale file there is removed."""


# Engines -------------------------------------------------------------------------------------------------------------


class Progress(Record):
    """How far a load is: ``fraction`` from 0 to 1, or None where the engine does not tell."""

    stage: str
    fraction: float | None = None


class LoadOrder(Record):
    """What the engine asks of a backend: load this model, on these devices.

    ``devices`` are the uuids of GPUs, empty for the machine's own memory; ``split`` gives each its part of the layers
    where there are several. ``record`` must be called as soon as a process exists, with what :meth:`Backend.adopt`
    needs to find it again: a daemon killed a moment later must not lose it. ``sized`` is to be called with the engine's
    own word on what it is about to allocate, before it reads any weights, where it gives one and ``unproven`` says that
    nobody has heard it yet; the load may be canceled at once for it. ``gpus`` are the devices as they were last seen,
    in the same order, for engines that are told a share of the whole.
    """

    model: Model
    unit: str
    devices: tuple[str, ...]
    vendor: str
    report: Callable[[Progress], None]
    record: Callable[["RunnerRecord"], None]
    split: tuple[float, ...] = ()
    unproven: bool = False
    sized: Callable[[Estimate], None] | None = None
    gpus: tuple[GpuSample, ...] = ()


class RunnerRecord(Record):
    """What is kept in the state directory for each start. ``extra`` belongs to the backend that wrote it (strings
    only).

    ``fingerprint`` names the settings that the engine was started with: a restarted daemon adopts only what is still
    configured the same way. ``child`` is None for what gpud did not start (attached engines). The engine fills in
    ``shares``, and ``context`` and ``layers`` where this one load has others than are configured, before it stores the
    record.
    """

    unit: str
    model: str
    engine: str
    fingerprint: str
    endpoint: Endpoint
    devices: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    context: int | None = None
    layers: int | None = None
    child: ChildRecord | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


class Runner(Protocol):
    """A model that is loaded and answers. Made by a backend, used by the engine and the doors."""

    @property
    def endpoint(self) -> Endpoint: ...

    def pids(self) -> frozenset[int]:
        """The processes whose memory is this model's."""

    async def gone(self) -> Exit:
        """Returns when the model is no longer loaded, for whatever reason. Many may wait."""

    async def busy(self) -> bool | None:
        """Whether the engine works on a request right now; None when it cannot tell. Bounded to a few seconds."""

    async def unload(self, times: StopTimes, on_kill: Callable[[], None] | None = None) -> None:
        """Give the memory back; returns when the engine says, or its exit shows, that it did. Never drains.

        ``on_kill`` is told when asking was in vain and force is used.
        """

    async def kill(self) -> None:
        """Give the memory back now, whatever it costs."""

    def tail(self) -> tuple[str, ...]: ...

    def crash_hint(self, ended: Exit) -> str:
        """What to do about this end, read from its last words; empty where they say nothing."""


class Backend(Protocol):
    """One kind of engine. Mostly data: argv, environment, how to see that it is ready, how it says that it is busy."""

    name: str

    def check(self, model: Model) -> None:
        """Raises BackendFailed(preflight=True) for what can be known before a start: a missing file or binary."""

    def file_bytes(self, model: Model) -> int | None:
        """The size of the model's weights on disk, where that can be known without starting anything."""

    def fingerprint(self, model: Model) -> str:
        """Changes when a running engine no longer matches the configuration."""

    def plan(self, model: Model, gpus: int) -> Plan | None:
        """How the engine will be told to place the model when it sees so many GPUs (0: the machine's own memory);
        None for an engine whose memory cannot be calculated from a file. May block; called in a thread.
        """

    def build(self) -> str:
        """Names the installed build of the engine; empty where that is unknown. May block; called in a thread."""

    async def probe(
        self, model: Model, devices: tuple[str, ...], vendor: str, split: tuple[float, ...]
    ) -> Estimate | None:
        """The engine's own record of what it would allocate, from a dry run that loads nothing; None where the engine
        gives none, or where a dry run would itself allocate (a recurrent state on a GPU).
        """

    async def load(self, order: LoadOrder) -> Runner:
        """Start, wait until it is ready, return. Canceling the call ends the start and leaves nothing behind.

        Raises BackendFailed with the last lines of output and a hint.
        """

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:
        """Take over what an earlier daemon loaded; None when it is gone or does not answer."""

    async def close(self) -> None:
        """End what the backend shares between models (a supervised ``ollama serve``)."""


class Standing(Record):
    """An engine that somebody else runs has this model at hand, and works on so many requests.

    ``full``: another one would have to wait. ``resident``: the memory that it needs is taken already.
    """

    working: int = 0
    full: bool = False
    resident: bool = False


@runtime_checkable
class TellsNeed(Protocol):
    """A backend that decides itself what its engine takes, where no :class:`Plan` says it."""

    def need(self, model: Model, *, on_gpu: bool) -> Estimate | None:
        """What the engine will be told to take; None where that is not known. May block; called in a thread."""


@runtime_checkable
class TellsStanding(Protocol):
    """A backend that may use engines which somebody else runs."""

    async def standing(self, model: Model) -> Standing | None:
        """How its engine stands with the model now; None where it would have to be loaded, or nothing is known.

        Bounded to a second or two. Raises BackendFailed(preflight=True) where it cannot serve the model at all.
        """


# Model files ---------------------------------------------------------------------------------------------------------


class Files(Protocol):
    """Reads what model files say about themselves, without their weights. For threads: a disk may be slow."""

    def read(self, path: str) -> ModelFile:
        """The model that this file (the first of its parts) begins. Raises BackendFailed(preflight=True) with what is
        wrong with it. What did not change on disk is not read again.
        """


class Finder(Protocol):
    """Looks for models on disk, and notices when something there changes."""

    def scan(self, roots: Roots, known: Mapping[str, Found], stop: Callable[[], bool] = lambda: False) -> Finding:
        """Everything below the roots, without reading tensors. For a thread; a long one asks ``stop`` now and then and
        raises Canceled.

        ``known`` is what an earlier scan found, by the path of each of its places: what has the same stamp is not read
        again.
        """

    def watch(self, roots: Roots, changed: Callable[[], None]) -> tuple[str, ...]:
        """From now on tell, on the loop, when something below the roots changes; returns the roots that cannot be
        watched (another machine's file system, no more watches) and have to be looked at from time to time. Called
        again it watches the new roots instead. Nothing polls.
        """

    def noticed(self) -> frozenset[str] | None:
        """The files that are all that has changed since this was asked, or a scan began; None: more has, or nobody
        knows. For a thread.
        """

    def look_at(self, roots: Roots, paths: Collection[str], known: Mapping[str, Found]) -> Finding | None:
        """Only at these files: those that are there, are models. None where what they are can be told only together
        with others, by a scan. ``known`` is what the last look found there. For a thread.
        """

    def lend(self) -> None:
        """A copy of this process will scan with a copy of this finder; then comes :meth:`take_back`. For a thread."""

    def take_back(self, kept: object) -> None:
        """Know what the copy has come to know, as its :meth:`kept` says; None: nothing, the scan was none."""

    def in_copy(self) -> None:
        """To be called in the copy, before it scans."""

    def kept(self) -> object:
        """In the copy, after its scan: what the finder has come to know."""

    def descriptors(self) -> Collection[int]:
        """What the copy needs to have open."""

    def close(self) -> None: ...


class Line(Protocol):
    """Between a process and its copy: whatever can be pickled, in its order. Raises EOFError where the other side has
    ended, or does not answer."""

    def send(self, message: object) -> None: ...

    def receive(self, within_s: float | None = None) -> Any:
        """Raises Canceled when nobody wants it any more."""

    def is_cut(self) -> bool:
        """In the copy: whether nobody waits for what it does."""


class Aside(Protocol):
    """Has work done in a copy of this process, which goes when that is done, and its memory with it. For threads."""

    def __call__(
        self,
        work: Callable[[Line], None],
        serve: Callable[[Line], T],
        stop: Callable[[], bool],
        keep: Collection[int] = (),
    ) -> T:
        """``work`` is done there, with a line to ``serve``, which is called here, and whose answer is returned.
        ``keep`` are descriptors that stay open there. Raises OSError where no copy can be had, EOFError where it ended
        before it was done, and Canceled when ``stop`` says so.

        ``work`` takes no lock that it did not make itself, logs nothing and knows no loop.
        """


class Remembered(Protocol):
    """What a look at all models needs of a :class:`Registry`."""

    def entries(self, names: Collection[str] | None = None) -> tuple[Entry, ...]:
        """Those with these names, or all of them, in the order of their ids; also those that are not there at
        present."""

    def take(self, entries: Sequence[Entry], at_us: int) -> tuple[Entry, ...]:
        """Remember what was found, each under its name, in one transaction; returns all that are known then.

        An entry whose ``id`` is 0 is new and gets one. What is kept already keeps its use, and what somebody said about
        it. Those that are known and are not among ``entries`` are no longer present.
        """


class Registry(Remembered, Protocol):
    """What is remembered of each model. For threads, one call at a time; never raises for a disk that is full, read-
    only or broken: it says so as the store does, and goes on in memory.
    """

    def lend(self, line: Line) -> bool:
        """While a copy of this process looks, with what :meth:`borrowed` gives it there: hand over all that is known,
        and write what comes back. False: nothing was written, because that cannot be done just now.
        """

    def borrowed(self, line: Line) -> Remembered:
        """In the copy."""

    def related(self, paths: Collection[str] = (), sizes: Collection[int] = ()) -> tuple[Entry, ...] | None:
        """Those that lie or lay at one of these paths, at whichever of their places, or have one of these sizes; in
        the order of their ids. This and the next two give None where that cannot be done for some alone: while the disk
        takes nothing, for example.
        """

    def names(self) -> Mapping[str, bool] | None:
        """Every name in use, by whether its model is there; aliases that somebody gave count as there."""

    def take_some(self, entries: Sequence[Entry], gone: Collection[int], at_us: int) -> tuple[Entry, ...] | None:
        """As :meth:`take` for these alone: of others nothing changes but those with the ids ``gone``, which are no
        longer present. Returns those that it was about.
        """

    def annotate(self, entry: Entry) -> None:
        """Keep what somebody said about it: its aliases, priority, tags and notes."""

    def estimated(self, sizes: Mapping[int, tuple[int, str]]) -> None:
        """What they would need, by id, and a mark of what that was calculated from."""

    def used(self, uses: Mapping[int, tuple[int, int, float | None]]) -> None:
        """By id: so many uses more, the time of the last (microseconds), and how long it took to load, where it was."""

    def forget(self, id_: int) -> None:
        """Its file is gone for good, and its past with it."""


# GPUs ----------------------------------------------------------------------------------------------------------------


class Gpus(Protocol):
    """All devices of the machine. The host's memory is always the last sample."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last look found wrong that belongs to no device: a missing driver library."""

    async def sample(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
        """A fresh look. With ``wake`` False a runtime-suspended device is left alone and reported as asleep.

        ``own`` are the processes that gpud answers for: the host sample lists the memory of those.
        """

    async def release(self) -> None:
        """Let go of the drivers: nothing is loaded, the devices may sleep."""


# Persistence ---------------------------------------------------------------------------------------------------------


class Store(Protocol):
    """What must survive a restart. Never raises for a full or read-only disk: it says so in ``problem`` and goes on."""

    @property
    def problem(self) -> str: ...

    def records(self) -> tuple[RunnerRecord, ...]: ...

    def keep(self, record: RunnerRecord) -> None: ...

    def forget(self, unit: str) -> None: ...

    def learn(self, key: str, measured: Measured) -> None:
        """Remember what a model was measured to hold, by the fingerprint of its settings and the kind of its devices.

        This and the following may be called from threads; they may block.
        """

    def learned(self, key: str) -> Measured | None: ...

    def learn_residual(self, place: str, residual_bytes: int) -> None:
        """One more measurement of what engines hold beyond their own count. ``place`` names the device, its driver and
        the engine's build.
        """

    def residual(self, place: str) -> Residual | None: ...

    def keep_probe(self, key: str, estimate: Estimate) -> None:
        """An engine's own record, by everything that it depends on."""

    def probed(self, key: str) -> Estimate | None: ...

    def log(self, entries: Sequence[Logged]) -> None:
        """Add to the event log, which is bounded: the oldest go."""

    def logged(self, model: str = "", limit: int = 100) -> tuple[Logged, ...]:
        """The latest entries, of one model or of all, the newest first."""

    def close(self) -> None:
        """Everything that was given is on the disk, as far as it takes it."""


class Warmer(Protocol):
    """Has files in the page cache, when nothing else needs the memory or the battery."""

    async def warm(self, path: str) -> None: ...


class FdStore(Protocol):
    """systemd's file descriptor store, or nothing outside systemd."""

    @property
    def lasting(self) -> bool:
        """True when descriptors really survive the daemon: only then may a child outlive it."""

    def put(self, name: str, fd: int) -> None: ...

    def drop(self, name: str) -> None: ...

    def take(self, name: str) -> int | None:
        """A descriptor that an earlier daemon stored under this name, once."""


class OutputSink(Protocol):
    """Where a child's lines go: the journal, or stderr."""

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None: ...


# Programs of others --------------------------------------------------------------------------------------------------


class OtherProgram(Record):
    """A process that is none of gpud's; ``start_time`` as in :class:`ChildRecord`."""

    pid: int
    name: str
    start_time: int = 0


class Programs(Protocol):
    """Knows to which programs the GPUs are left."""

    def wanted(self) -> bool:
        """Whether there is anything to look for."""

    def look(self) -> Sequence[OtherProgram]:
        """Those that run now. Blocks for some milliseconds."""

    async def ended(self, program: OtherProgram) -> None:
        """Returns when it has ended; nothing is asked meanwhile."""
