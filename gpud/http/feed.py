"""The events that gpud sends to whoever listens: numbered, kept for a while, and never waiting for a listener.

What happens once (a state, a job, a message) is told at once. What moves all the time (memory, the queue, progress) is
told at most once a second, when it has changed, and only while somebody listens: with nobody there is no timer.
"""

import asyncio
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator

from gpud.core import statuses
from gpud.core.events import (
    Alert,
    CatalogueChanged,
    ClaimGranted,
    ClaimOver,
    JobEnded,
    Level,
    ModelChanged,
    Notice,
    Outcome,
    Touched,
)
from gpud.core.facts import JobKind, Snapshot, State
from gpud.engine import Engine
from gpud.http import feed_events
from gpud.http.feed_events import USUAL, Body, Event, Type, known, timestamp
from gpud.http.feed_shapes import Encoder, Shape, encoder
from gpud.http.lines import Line, Lines, Origin
from gpud.http.mailbox import Mailbox
from gpud.http.metrics import RequestSeen

QUIET_S = 1.0
"""Memory, the queue and progress are told at most this often: a listener redraws something with each."""

KEPT = 1000
KEPT_BYTES = 1 << 20
"""What one who was away can still have: hours on a quiet machine, minutes on a busy one."""

KEPT_LOGS = 500
KEPT_LOGS_BYTES = 512 << 10
"""The same for the lines of engines, apart, so that one that chatters does not push everything else out."""

MAILBOX = 2000
MAILBOX_BYTES = 2 << 20
"""What waits for a listener that does not read. It holds all that is kept, so that one who returns loses nothing."""

_FIGURES = frozenset((Type.QUEUE, Type.VRAM, Type.PROGRESS, Type.DOWNLOAD))
_PICTURED = _FIGURES | {Type.MODEL_STATE, Type.SNAPSHOT}


class Ring:
    """The last events of one sort, by number and by size."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._dropped = 0

    def add(self, event: Event) -> None:
        self._events.append(event)
        self._bytes += event.size_bytes
        while len(self._events) > self._limit or (self._bytes > self._limit_bytes and len(self._events) > 1):
            gone = self._events.popleft()
            self._bytes -= gone.size_bytes
            self._dropped = gone.number

    def lacks(self, number: int) -> bool:
        """Whether events after this number are no longer there."""
        return self._dropped > number

    def since(self, number: int) -> Iterator[Event]:
        return (event for event in self._events if event.number > number)


class Subscription:
    """What one listener gets, in the shape that it wants. A context manager: whoever listens closes it at the end."""

    def __init__(self, feed: "Feed", kinds: frozenset[Type], encode: Encoder) -> None:
        self._feed = feed
        self._encode = encode
        self._mailbox: Mailbox[Event] = Mailbox(MAILBOX, MAILBOX_BYTES)
        self._out: deque[bytes] = deque()
        self._behind = False
        self.kinds = kinds

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def next(self) -> bytes:
        """The next message, complete; empty when there will be none any more.

        One who was too slow is told how many are missing, then gets the rest, and then how everything stands now.
        """
        while not self._out:
            if self._behind and not len(self._mailbox):
                self.begin()
                continue
            await self._mailbox.wait()
            lost = self._mailbox.take_lost()
            if lost:
                self.gap("slow", lost)
            event = self._mailbox.take()
            if event is None:
                return b""
            self._out.extend(self._encode(event, self._feed))
        return self._out.popleft()

    def close(self) -> None:
        self._feed.forget(self)
        self._mailbox.close()

    def begin(self) -> None:
        """Put the picture of the whole next."""
        self._behind = False
        if self.kinds & _PICTURED:
            self._out.extend(self._encode(self._feed.picture(), self._feed))

    def gap(self, reason: str, lost: int | None = None) -> None:
        """Say that something is missing here; the picture follows when the rest has been told."""
        self._behind = True
        self._out.extend(self._encode(self._feed.gap(reason, lost), self._feed))

    def offer(self, event: Event) -> None:
        if event.type in self.kinds:
            self._mailbox.put(event, event.size_bytes)

    def end(self) -> None:
        """Nothing comes any more; what is there can still be read."""
        self._mailbox.close()


class Feed:
    """Fed with the engine's outcomes (and with the lines of engines, where it has them); asked for subscriptions."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time, lines: Lines | None = None) -> None:
        self._engine = engine
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # Numbers begin anew with each start of gpud: whoever comes with one of another life must be found out.
        self._life = secrets.token_hex(4)
        self._number = 0
        self._ring = Ring(KEPT, KEPT_BYTES)
        self._logs = Ring(KEPT_LOGS, KEPT_LOGS_BYTES)
        self._subscriptions: list[Subscription] = []
        self._later: asyncio.TimerHandle | None = None
        self._told_at_s = float("-inf")
        self._told: dict[Type, object] = {Type.QUEUE: ()}
        self._progress: dict[str, Body] = {}
        self._downloads: dict[int, Body] = {}
        self._closed = False
        self.lines = lines
        self._unsubscribe = lines.subscribe(self._line) if lines is not None else None

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._subscriptions)

    def wants(self, kind: Type) -> bool:
        """Whether somebody listens to events of this type."""
        return any(kind in subscription.kinds for subscription in self._subscriptions)

    # What happens ----------------------------------------------------------------------------------------------------

    def listen(self, outcomes: tuple[Outcome, ...]) -> None:
        """The engine's listener. Cheap: it is called for each request that passes."""
        for outcome in outcomes:
            match outcome:
                case Touched():
                    pass
                case ModelChanged():
                    self._changed(outcome)
                case Notice():
                    self.notice(outcome)
                case JobEnded():
                    self._emit(Type.JOB, feed_events.job(outcome))
                case Alert():
                    self._emit(Type.ALERT, feed_events.alert(outcome))
                case CatalogueChanged():
                    self._emit(Type.CATALOG, feed_events.catalog(outcome, len(self._engine.library.models)))
                case ClaimGranted() | ClaimOver():
                    self._emit(Type.CLAIM, feed_events.claim(outcome))
                case _:
                    pass
        self._touch()

    def notice(self, notice: Notice) -> None:
        """What gpud tells; also what does not come from the engine."""
        if notice.level is not Level.DEBUG:
            self._emit(Type.NOTICE, feed_events.notice(notice))

    def observe(self, seen: RequestSeen) -> None:
        """One request is over. Told to those alone who asked for it, and not kept."""
        if not self._subscriptions or not self.wants(Type.REQUEST):
            return
        body = known(
            {
                "model": seen.model,
                "route": seen.route,
                "status": seen.status,
                "duration_seconds": round(seen.duration_s, 6),
                "first_byte_seconds": None if seen.first_byte_s is None else round(seen.first_byte_s, 6),
                "prompt_tokens": seen.prompt_tokens,
                "generated_tokens": seen.generated_tokens,
            }
        )
        self._emit(Type.REQUEST, body)

    def _changed(self, change: ModelChanged) -> None:
        status = statuses.status_of(self._engine.snapshot().models, change.model)
        self._emit(
            Type.MODEL_STATE, feed_events.model_state(status, change.model, change.old, change.new, change.reason)
        )

    def _line(self, line: Line) -> None:
        # What gpud itself says comes as a notice, with its kind and its numbers.
        if line.origin is Origin.ENGINE:
            self._emit(Type.LOG, feed_events.log(line))

    def _emit(self, kind: Type, body: Body) -> None:
        if self._closed:
            return
        self._number += 1
        event = self._event(self._number, kind, body)
        if kind is Type.LOG:
            self._logs.add(event)
        elif kind is not Type.REQUEST:
            self._ring.add(event)
        for subscription in tuple(self._subscriptions):
            subscription.offer(event)

    def _event(self, number: int, kind: Type, body: Body) -> Event:
        at_s = self._clock()
        name = f"{self._life}-{number}"
        head = {"id": name, "at": timestamp(at_s), "type": kind.value}
        text = json.dumps({**head, **body}, ensure_ascii=False, separators=(",", ":"))
        return Event(number, name, at_s, kind, body, text)

    # What moves all the time -----------------------------------------------------------------------------------------

    def _touch(self) -> None:
        if self._later is not None or self._closed:
            return
        if any(subscription.kinds & _FIGURES for subscription in self._subscriptions):
            wait_s = max(0.0, self._told_at_s + QUIET_S - self._loop.time())
            self._later = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        self._later = None
        self._told_at_s = self._loop.time()
        snapshot = self._engine.snapshot()
        memory = feed_events.vram(snapshot)
        self._tell_if_new(Type.VRAM, memory, memory)
        # How long somebody has waited is no change.
        self._tell_if_new(Type.QUEUE, snapshot.queue, feed_events.queue(snapshot))
        self._tell_progress(snapshot)
        self._tell_downloads(snapshot)

    def _tell_if_new(self, kind: Type, value: object, body: Body) -> None:
        if self._told.get(kind) != value:
            self._told[kind] = value
            self._emit(kind, body)

    def _tell_progress(self, snapshot: Snapshot) -> None:
        loading = {
            status.model.name: feed_events.progress(status, snapshot)
            for status in statuses.lively(snapshot.models)
            if status.state is State.LOADING and status.progress is not None
        }
        for name, body in loading.items():
            if self._progress.get(name) != body:
                self._emit(Type.PROGRESS, body)
        self._progress = loading

    def _tell_downloads(self, snapshot: Snapshot) -> None:
        under_way = {job.id: feed_events.download(job) for job in snapshot.jobs if job.kind is JobKind.DOWNLOAD}
        for number, body in under_way.items():
            if self._downloads.get(number) != body:
                self._emit(Type.DOWNLOAD, body)
        self._downloads = under_way

    # Who listens -----------------------------------------------------------------------------------------------------

    def subscribe(
        self, since: str = "", kinds: Collection[Type] = (), shape: Shape | Encoder = Shape.EVENTS
    ) -> Subscription:
        """Everything from now on, or from behind the event ``since`` (the id of the last one that was read).

        ``kinds`` empty means :data:`USUAL`. One that names no event begins with a picture of the whole; one that names
        an event which is no longer there, or is of an earlier life of gpud, is told of the gap, gets what there is, and
        then the picture.
        """
        wanted = frozenset(kinds) or USUAL
        subscription = Subscription(self, wanted, encoder(shape) if isinstance(shape, Shape) else shape)
        if self._closed:
            subscription.end()
            return subscription
        if not self._subscriptions or not any(other.kinds & _FIGURES for other in self._subscriptions):
            # Nobody was there to be told: what has changed meanwhile is taken down now.
            self._cancel()
            self._look()
        if since:
            self._resume(subscription, since)
        else:
            subscription.begin()
        self._subscriptions.append(subscription)
        return subscription

    def _resume(self, subscription: Subscription, since: str) -> None:
        match = re.fullmatch(rf"{self._life}-([0-9]{{1,18}})", since)
        number = int(match[1]) if match else 0
        rings = [self._ring] + ([self._logs] if Type.LOG in subscription.kinds else [])
        if match is None or number > self._number:
            subscription.gap("restarted")
            number = 0
        elif any(ring.lacks(number) for ring in rings):
            subscription.gap("too-old")
        missed = sorted((event for ring in rings for event in ring.since(number)), key=lambda event: event.number)
        for event in missed:
            subscription.offer(event)

    def forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if not self._subscriptions:
            self._cancel()

    def picture(self) -> Event:
        """How everything stands, under the number of the last event: whoever resumes from here misses nothing."""
        return self._event(self._number, Type.SNAPSHOT, feed_events.picture(self._engine.snapshot()))

    def gap(self, reason: str, lost: int | None) -> Event:
        return self._event(self._number, Type.GAP, known({"reason": reason, "lost": lost}))

    def close(self) -> None:
        """Every subscription ends when it has been read to its end."""
        self._closed = True
        self._cancel()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for subscription in tuple(self._subscriptions):
            subscription.end()

    def _cancel(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
