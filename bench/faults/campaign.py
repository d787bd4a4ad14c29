"""The order of a campaign: a fault, its end, a look whether anything is left over; and what came of all of it."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.faults import callers, engines, files, gpu, people, service
from bench.faults.account import Account, Excuse, Outcome
from bench.faults.clients import Load
from bench.faults.fault import FAULTS, Fault, Scene, drawn
from bench.faults.models import TALKERS
from bench.faults.system import Leak, System

LISTS = (engines, service, callers, gpu, files, people)
"""The modules that put their faults on the list."""

LEAKS = ("processes", "fds", "sockets", "reservations", "bytes")
CHECK_EVERY = 5
"""Faults between two looks for what is left over: for a look everybody pauses and everything is unloaded."""


@dataclass
class Row:
    """One line of the table."""

    fault: str
    times: int = 0
    cut: int = 0
    refused: int = 0
    lost: int = 0
    leaked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LEAKS, 0))
    recovery_s: float = 0.0


@dataclass
class Result:
    seed: int
    rows: dict[str, Row] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    faults: int = 0
    wanted: int = 0
    took_s: float = 0.0
    left_out: list[str] = field(default_factory=list)


class Campaign:
    """Runs in the caller's thread, beside those of the load."""

    def __init__(self, system: System, load: Load, account: Account, seed: int, say: Callable[[str], None]) -> None:
        self._system = system
        self._load = load
        self._account = account
        self._chance = random.Random(seed)
        self._say = say
        self._group: list[str] = []
        self._lost = 0
        self.result = Result(seed)

    def run(self, faults: int, until_s: float, only: Sequence[str] = (), check_every: int = CHECK_EVERY) -> Result:
        """So many, or until the time has come."""
        result = self.result
        possible = [name for name in sorted(FAULTS) if self._possible(FAULTS[name]) and (not only or name in only)]
        result.left_out = sorted(set(only or FAULTS) - set(possible))
        result.wanted = faults
        began_s = time.monotonic()
        self._check()
        for number, name in enumerate(drawn(self._chance, faults, possible), start=1):
            if time.monotonic() > until_s:
                break
            self._happen(FAULTS[name], number)
            result.faults = number
            if number % check_every == 0 or number == faults:
                self._check()
        else:
            self._group.clear()
        if self._group:
            self._check()
        self._close(began_s)
        return result

    def _possible(self, fault: Fault) -> bool:
        return (self._system.has_disk or not fault.needs_disk) and (self._system.real or not fault.needs_real)

    def _happen(self, fault: Fault, number: int) -> None:
        scene = Scene(self._system, self._load, self._account, self._chance, self._chance.choice(TALKERS))
        row = self.result.rows.setdefault(fault.name, Row(fault.name))
        row.times += 1
        self._group.append(fault.name)
        self._account.note(f"fault {number}: {fault.name} ({scene.model})")
        excuse = Excuse(fault.name, fault.models(scene), fault.refusals, fault.kinds)
        began_s = recovering_s = time.monotonic()
        with self._account.excusing(excuse):
            try:
                over = fault.happen(scene)
                recovering_s = time.monotonic()
                over()
            except Exception as problem:
                self._find(f"fault {number}, {fault.name} ({scene.model}): {type(problem).__name__}: {problem}")
                self._heal()
        ended_s = time.monotonic()
        row.recovery_s = max(row.recovery_s, ended_s - recovering_s)
        row.cut += excuse.cut
        row.refused += excuse.refused
        self._say(f"{number:4} {fault.name:32} {scene.model:4} {ended_s - began_s:6.2f} s")
        self._account.note(f"fault {number} is over")
        self._count_lost(row)

    def _count_lost(self, row: Row) -> None:
        lost = self._account.lost
        for text in lost[self._lost :]:
            row.lost += 1
            self._find(f"lost during or after {row.fault}: {text}")
        self._lost = len(lost)

    def _check(self) -> None:
        """Everybody pauses, everything goes: what is there now is left over."""
        group, self._group = self._group, []
        try:
            self._load.pause()
            self._system.check_empty()
        except Leak as leak:
            for name in set(group):
                self.result.rows[name].leaked[leak.kind] += leak.count
            self._find(f"after {', '.join(group) or 'the start'}: {leak}")
        except Exception as problem:
            self._find(f"after {', '.join(group) or 'the start'}: {type(problem).__name__}: {problem}")
            self._heal()
        finally:
            self._load.resume()
        if group:
            self._count_lost(self.result.rows[group[-1]])

    def _heal(self) -> None:
        """After a finding the campaign goes on, from a system that is well."""
        self._load.hold_back()
        try:
            self._system.heal()
        except Exception as problem:
            self._find(f"it could not be made well again: {type(problem).__name__}: {problem}")
        finally:
            self._load.resume()

    def _find(self, text: str) -> None:
        self.result.findings.append(text)
        self._account.note(f"FOUND {text}")
        self._say(f"FOUND {text}")

    def _close(self, began_s: float) -> None:
        result = self.result
        try:
            self._load.pause()
        except AssertionError as problem:
            self._find(str(problem))
        if self._account.waiting:
            self._find(f"{self._account.waiting} requests have no end")
        for text in self._system.complaints():
            self._find(text)
        if self._system.gpus.overflows() and not set(result.rows) & OVERFLOWING:
            self._find(f"more was held than there is: {self._system.gpus.overflows()[:3]}")
        result.totals = {str(outcome): self._account.totals[outcome] for outcome in Outcome}
        result.reasons = dict(self._account.reasons)
        result.took_s = time.monotonic() - began_s


OVERFLOWING = {"others-take-the-memory", "engine-outgrows-its-estimate"}
"""Faults that by themselves take more than there is."""
