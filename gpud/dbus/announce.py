"""Tells the bus what changed: jobs and states as they happen, properties once a turn and, for what moves all the time,
once a second. Holds no timer while nothing changes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from gpud.core.events import (
    Alert,
    CatalogueChanged,
    ClaimGranted,
    ClaimOver,
    HoldEnded,
    JobEnded,
    ModelChanged,
    Notice,
    Outcome,
)
from gpud.core.facts import Snapshot
from gpud.core.statuses import lively, status_of
from gpud.dbus.interface import INTERFACE, PATH, PROPERTIES, ObjectTree
from gpud.dbus.model_records import MANY, ModelRecords
from gpud.dbus.render import alert_values, shown_state
from gpud.dbus.shown import Shown
from gpud.dbus.values import Record
from gpud.dbus.wire import Flag, Kind, Message, Variant, is_unique_name

# What has no event of its own (a request more or less in flight, a measurement, progress) is told at most this often: a
# gateway under load changes it thousands of times a second, and every desktop listens.
QUIET_S = 1.0
# VramUsed moves by itself all the time; smaller moves than both of these interest nobody.
VRAM_STEP_BYTES = 64 << 20
VRAM_STEP_SHARE = 0.01

# Properties that are told at most once in QUIET_S. Of the lists of records among them only these keys wait, which move
# with every request and every measurement; what else changes in a record is told at once. None: all of it waits.
_RESTLESS: dict[str, frozenset[str] | None] = {
    "VramUsed": None,
    "NextUnloadUSec": None,
    "Queue": None,
    "Models": frozenset({"LastUsedUSec", "UnloadAtUSec", "VramBytes", "InFlight", "WaitsFor", "Uses"}),
    "Claims": frozenset({"UsedBytes", "WaitsFor"}),
    "Downloads": frozenset({"Progress", "Bytes", "TotalBytes"}),
}


class Announcer:
    """Fed with the engine's outcomes, it sends the signals. ``send`` must do nothing while there is no bus."""

    def __init__(
        self,
        tree: ObjectTree,
        shown: Shown,
        send: Callable[[Message], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._own = tree.own
        self._shown = shown
        self._send = send
        self._loop = loop or asyncio.get_running_loop()
        self._news: list[ModelChanged | JobEnded | HoldEnded | Alert | CatalogueChanged] = []
        self._due: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._told_at_s = self._loop.time() - QUIET_S
        self._states: dict[str, str] = {}
        self._values: Record = {}
        self._quietly_released: set[int] = set()
        self._gone: set[str] = set()

    def baseline(self) -> None:
        """Everybody who connects now reads everything: only what changes from here on is news."""
        snapshot = self._shown.look()
        self._states = {status.model.name: shown_state(status) for status in lively(snapshot.models)}
        self._values = self._current()

    def listen(self, outcomes: tuple[Outcome, ...]) -> None:
        """The engine's listener. Cheap: it may be called for each request that passes."""
        urgent = False
        for outcome in outcomes:
            if isinstance(outcome, ModelChanged | JobEnded | HoldEnded | Alert | CatalogueChanged):
                self._news.append(outcome)
                urgent = True
            elif isinstance(outcome, Notice | ClaimGranted | ClaimOver):
                urgent = True
        self.touch(urgent=urgent)

    def touch(self, *, urgent: bool = False) -> None:
        """Look for changes at the end of this turn, or, for what is not urgent, not more often than once a second."""
        if self._due is not None:
            return
        wait_s = 0.0 if urgent else self._told_at_s + QUIET_S - self._loop.time()
        if wait_s <= 0:
            self._due = self._loop.call_soon(self._tell)
        elif self._later is None:
            self._later = self._loop.call_later(wait_s, self._tell)

    def asked_for(self, cookie: int) -> None:
        """The holder itself gave up this hold: it need not be told."""
        self._quietly_released.add(cookie)

    def vanished(self, owner: str) -> None:
        """This holder has left the bus: nothing can be told to it."""
        self._gone.add(owner)

    def close(self) -> None:
        for handle in (self._due, self._later):
            if handle is not None:
                handle.cancel()
        self._due = self._later = None

    def flush(self) -> None:
        """Tell at once what is waiting to be told."""
        if self._due is not None or self._later is not None:
            self._tell()

    # ---------------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self.close()
        now_s = self._loop.time()
        rested = now_s - self._told_at_s >= QUIET_S
        snapshot = self._shown.look()
        self._tell_news()
        waiting = self._tell_states(snapshot, rested=rested)
        waiting |= self._tell_properties(snapshot, rested=rested)
        if rested:
            self._told_at_s = now_s
        if waiting and self._later is None:
            self._later = self._loop.call_later(max(0.0, self._told_at_s + QUIET_S - now_s), self._tell)

    def _current(self) -> Record:
        values = self._shown.properties()
        return {name: value for name, value in values.items() if self._own.properties[name].emits}

    def _tell_news(self) -> None:
        news, self._news = self._news, []
        for item in news:
            if isinstance(item, ModelChanged):
                self._tell_state(item.model, item.new.word(), item.reason)
            elif isinstance(item, JobEnded):
                self._signal("JobRemoved", [item.job, item.model, item.result.value, item.message])
            elif isinstance(item, CatalogueChanged):
                self._signal("CatalogChanged", [list(item.new), list(item.gone), list(item.changed)])
            elif isinstance(item, Alert):
                self._signal("VramAlert", alert_values(item))
            elif item.cookie in self._quietly_released:
                self._quietly_released.discard(item.cookie)
            elif is_unique_name(item.owner) and item.owner not in self._gone:
                self._signal("HoldReleased", [item.cookie, item.reason], destination=item.owner)
        self._gone.clear()

    def _tell_states(self, snapshot: Snapshot, *, rested: bool) -> bool:
        """States that have no event: queued, and ready against busy. Returns whether something is left for later."""
        left = False
        for status in lively(snapshot.models):
            name, state = status.model.name, shown_state(status)
            told = self._states.get(name, "unloaded")
            if state == told:
                continue
            if {state, told} == {"ready", "busy"} and not rested:
                left = True
            else:
                self._tell_state(name, state, {"queued": "budget", "busy": "request"}.get(state, status.reason))
        for name in self._states.keys() - {status.model.name for status in lively(snapshot.models)}:
            # It rests again, or has gone: of that others tell.
            if status_of(snapshot.models, name) is not None:
                self._tell_state(name, "unloaded", "")
            del self._states[name]
        return left

    def _tell_state(self, model: str, state: str, reason: str) -> None:
        if self._states.get(model, "unloaded") != state:
            self._states[model] = state
            self._signal("ModelStateChanged", [model, state, reason])

    def _tell_properties(self, snapshot: Snapshot, *, rested: bool) -> bool:
        changed: Record = {}
        left = False
        for name, value in self._current().items():
            told = self._values.get(name)
            if value == told:
                continue
            if told is not None and name in _RESTLESS:
                if name == "VramUsed" and not _far_apart(value, told, self._total(snapshot)):
                    continue
                keys = _RESTLESS[name]
                if not rested and (keys is None or _same_but_for(value, told, keys)):
                    # Restless alone: it waits until a second has passed, and then goes with what else changed.
                    left = True
                    continue
            changed[name] = value
        if changed:
            self._values |= changed
            # Thousands of records would go to everybody who listens, again and again.
            asked_for = ["Models"] if "Models" in changed and len(snapshot.models) > MANY else []
            sent = {name: value for name, value in changed.items() if name not in asked_for}
            self._signal("PropertiesChanged", [INTERFACE, sent, asked_for], interface=PROPERTIES, signature="sa{sv}as")
        return left

    def _total(self, snapshot: Snapshot) -> int:
        return sum(gpu.sample.total_bytes or 0 for gpu in snapshot.gpus if not gpu.sample.is_host)

    def _signal(
        self, member: str, body: list[Any], *, interface: str = INTERFACE, signature: str = "", destination: str = ""
    ) -> None:
        self._send(
            Message(
                Kind.SIGNAL,
                flags=Flag.NO_REPLY_EXPECTED,
                path=PATH,
                interface=interface,
                member=member,
                destination=destination,
                signature=signature or self._own.signals[member],
                body=body,
            )
        )


def _far_apart(value: Variant, told: Variant, total_bytes: int) -> bool:
    moved = abs(value.value - told.value)
    return bool(moved >= VRAM_STEP_BYTES or (total_bytes and moved >= total_bytes * VRAM_STEP_SHARE))


def _same_but_for(value: Variant, told: Variant, restless: frozenset[str]) -> bool:
    """Whether only what moves by itself differs between these records."""
    if isinstance(value.value, ModelRecords) and isinstance(told.value, ModelRecords):
        return value.value.same(told.value, restless)
    return _calm(value, restless) == _calm(told, restless)


def _calm(records: Variant, restless: frozenset[str]) -> list[Record]:
    """The records without what moves by itself."""
    return [{key: value for key, value in record.items() if key not in restless} for record in records.value]
