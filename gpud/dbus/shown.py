"""What everybody may see of the engine, put together and turned into bytes once for each change; decides nothing."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from gpud.core.facts import JobStatus, Snapshot
from gpud.core.record import replace
from gpud.core.statuses import Statuses
from gpud.dbus.model_records import MANY, ModelRecords, Parts, Tells, nothing_known
from gpud.dbus.overview import Choice, Overview
from gpud.dbus.render import (
    gpu_record,
    job_record,
    model_record,
    property_values,
    queue_record,
    session_record,
    status_values,
)
from gpud.dbus.values import Record, number
from gpud.dbus.wall_clock import WallClock

KEPT_S = 60.0
"""So long the bytes of very many models are kept after somebody asked: for 5,000 they are 10 MB."""

AT_ONCE = 300
"""The bytes of so many models are made while all else waits: it takes some milliseconds."""

Encode = Callable[[str, tuple[Any, ...]], bytes]
"""The bytes of a body, from its signature and its values."""


class Shown:
    """Each answer is kept until the engine shows something else, or the wall clock is set.

    Bodies are asked for far more often than they change: a panel that follows the signals asks after each of them, a
    script asks in a loop, and the library takes up to a millisecond for one of some KiB. ``tells`` says what the
    registry knows of a model, and ``told`` is another value whenever that may be something else.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        clock: WallClock,
        version: str,
        encode: Encode,
        tells: Tells = nothing_known,
        told: Callable[[], object] = lambda: None,
    ) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._version = version
        self._encode = encode
        self._tells = tells
        self._told = told
        self._parts = Parts()
        self._overview = Overview(tells)
        self._drop: asyncio.TimerHandle | None = None
        self._seen: tuple[Snapshot, float, object] | None = None
        self._bodies: dict[str, bytes] = {}
        self._properties: Record | None = None

    def look(self) -> Snapshot:
        """How things stand now."""
        snapshot = self._snapshot()
        # The time alone changes nothing that is shown: every time in it is one that stands still.
        seen = (replace(snapshot, now_s=0.0), self._clock.see(snapshot.now_s), self._told())
        if seen != self._seen:
            self._seen = seen
            self._bodies.clear()
            self._properties = None
        return snapshot

    def properties(self) -> Record:
        """Every property with its value."""
        snapshot = self.look()
        if self._properties is None:
            self._properties = property_values(snapshot, self._clock, self._version, self._records(snapshot))
        return self._properties

    def _records(self, snapshot: Snapshot) -> ModelRecords:
        return ModelRecords(snapshot.models, self._clock, self._tells, self._told(), self._parts)

    def is_ready(self) -> bool:
        """Whether a body with all models takes no longer than others may wait."""
        models = self.look().models
        return not isinstance(models, Statuses) or self._parts.missing(models) <= AT_ONCE

    async def prepare(self) -> None:
        """Have most of such a body made beside all other work."""
        models = self.look().models
        if isinstance(models, Statuses):
            await asyncio.to_thread(deque, self._parts.of(models, self._clock.still(), self._tells), 0)

    def all_properties(self) -> bytes:
        """The body of an answer to GetAll."""
        return self._body("properties", "a{sv}", lambda _snapshot: self.properties())

    def status(self) -> bytes:
        """The body of an answer to Status."""
        return self._body("status", "a{sv}", self._status)

    def _status(self, snapshot: Snapshot) -> dict[str, Any]:
        return status_values(snapshot, self._clock, self._version, self._records(snapshot))

    def overview(self, choice: Choice) -> bytes:
        """The body of an answer to Overview: each caller chooses for himself, and it is short."""
        snapshot = self.look()
        chosen = self._overview.choose(snapshot, self._clock, self._told(), choice)
        records = [model_record(status, self._clock, self._tells(status.model.name)) for status in chosen.models]
        values = status_values(snapshot, self._clock, self._version, records)
        counts = {"ModelCount": number("u", len(snapshot.models)), "Others": number("u", chosen.others)}
        return self._encode("a{sv}", (values | counts,))

    def models(self) -> bytes:
        """The body of an answer to ListModels."""
        return self._body("models", "aa{sv}", self._records)

    def gpus(self) -> bytes:
        """The body of an answer to ListGpus."""
        return self._body("gpus", "aa{sv}", lambda snapshot: [gpu_record(status) for status in snapshot.gpus])

    def job(self, status: JobStatus) -> Record:
        """One job that runs, as Status has it."""
        self.look()
        return job_record(status, self._clock)

    def queue(self) -> bytes:
        """The body of an answer to ListQueue."""
        return self._body(
            "queue", "aa{sv}", lambda snapshot: [queue_record(status, self._clock) for status in snapshot.queue]
        )

    def sessions(self) -> bytes:
        """The body of an answer to ListSessions."""
        return self._body(
            "sessions",
            "aa{sv}",
            lambda snapshot: [session_record(status, snapshot, self._clock) for status in snapshot.sessions],
        )

    def _body(self, name: str, signature: str, values: Callable[[Snapshot], Any]) -> bytes:
        snapshot = self.look()
        body = self._bodies.get(name)
        if body is None:
            body = self._bodies[name] = self._encode(signature, (values(snapshot),))
        if len(snapshot.models) > MANY:
            self._drop_later()
        return body

    def _drop_later(self) -> None:
        """What was made for very many models is kept as long as somebody asks."""
        if self._drop is not None:
            self._drop.cancel()
        self._drop = asyncio.get_running_loop().call_later(KEPT_S, self._dropped)

    def _dropped(self) -> None:
        self._drop = None
        self._bodies.clear()
        self._parts.clear()
