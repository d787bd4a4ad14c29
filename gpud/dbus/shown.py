"""What everybody may see of the engine, put together and turned into bytes once for each change; decides nothing."""

from collections.abc import Callable
from typing import Any

from gpud.core.facts import Snapshot
from gpud.core.record import replace
from gpud.dbus.model_records import ModelRecords
from gpud.dbus.render import (
    Record,
    WallClock,
    gpu_record,
    property_values,
    queue_record,
    session_record,
    status_values,
)

Encode = Callable[[str, tuple[Any, ...]], bytes]
"""The bytes of a body, from its signature and its values."""


class Shown:
    """Each answer is kept until the engine shows something else, or the wall clock is set.

    Bodies are asked for far more often than they change: a panel that follows the signals asks after each of them, a
    script asks in a loop, and the library takes up to a millisecond for one of some KiB.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], clock: WallClock, version: str, encode: Encode) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._version = version
        self._encode = encode
        self._seen: tuple[Snapshot, float] | None = None
        self._bodies: dict[str, bytes] = {}
        self._properties: Record | None = None

    def look(self) -> Snapshot:
        """How things stand now."""
        snapshot = self._snapshot()
        # The time alone changes nothing that is shown: every time in it is one that stands still.
        seen = (replace(snapshot, now_s=0.0), self._clock.see(snapshot.now_s))
        if seen != self._seen:
            self._seen = seen
            self._bodies.clear()
            self._properties = None
        return snapshot

    def properties(self) -> Record:
        """Every property with its value."""
        snapshot = self.look()
        if self._properties is None:
            models = ModelRecords(snapshot.models, self._clock)
            self._properties = property_values(snapshot, self._clock, self._version, models)
        return self._properties

    def all_properties(self) -> bytes:
        """The body of an answer to GetAll."""
        return self._body("properties", "a{sv}", lambda _snapshot: self.properties())

    def status(self) -> bytes:
        """The body of an answer to Status."""
        return self._body("status", "a{sv}", self._status)

    def _status(self, snapshot: Snapshot) -> dict[str, Any]:
        return status_values(snapshot, self._clock, self._version, ModelRecords(snapshot.models, self._clock))

    def models(self) -> bytes:
        """The body of an answer to ListModels."""
        return self._body("models", "aa{sv}", lambda snapshot: ModelRecords(snapshot.models, self._clock))

    def gpus(self) -> bytes:
        """The body of an answer to ListGpus."""
        return self._body("gpus", "aa{sv}", lambda snapshot: [gpu_record(status) for status in snapshot.gpus])

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
        return body
