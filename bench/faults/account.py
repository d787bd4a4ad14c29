"""What became of each request: answered whole, refused with a reason, cut by a fault that says so, or lost."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

ORDINARY = frozenset({"queue_full", "queue_timeout", "canceled", "not_loaded"})
"""Reasons for which anybody may be refused while models take turns: the queue was full, the wait too long, somebody
else asked for the model's unload, or did so before."""


class Outcome(StrEnum):
    WHOLE = "whole"
    REFUSED = "refused"
    CUT = "cut"
    LOST = "lost"


@dataclass(slots=True)
class Asked:
    """One request from its beginning to its end."""

    what: str
    model: str
    began_s: float
    outcome: Outcome | None = None


@dataclass(eq=False)
class Excuse:
    """What a fault may do while it lasts: cut the answers of these models (None: everybody's) and whatever is asked in
    these ways (the first word of it), and have others refused for these reasons."""

    fault: str
    models: frozenset[str] | None = frozenset()
    refusals: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    began_s: float = field(default_factory=time.monotonic)
    ended_s: float = float("inf")
    cut: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)

    def covers(self, asked: Asked) -> bool:
        return self.models is None or asked.model in self.models or asked.what.partition(" ")[0] in self.kinds


class Account:
    """For any number of threads. Whoever asks something settles it; what is never settled counts as lost."""

    def __init__(self, log: Path) -> None:
        self._lock = threading.Lock()
        self._log = log.open("w", buffering=1)
        self._open: set[int] = set()
        self._excuses: list[Excuse] = []
        self.totals: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.lost: list[str] = []

    @contextmanager
    def asks(self, what: str, model: str) -> Iterator[Asked]:
        asked = Asked(what, model, time.monotonic())
        with self._lock:
            self._open.add(id(asked))
        try:
            yield asked
        except BaseException as problem:
            # What the load itself did not expect is a finding too.
            if asked.outcome is None:
                self.broken(asked, f"{type(problem).__name__}: {problem}")
            if not isinstance(problem, Exception):
                raise
        finally:
            if asked.outcome is None:
                self._settle(asked, Outcome.LOST, "nobody said what became of it")
            with self._lock:
                self._open.discard(id(asked))

    def whole(self, asked: Asked) -> None:
        self._settle(asked, Outcome.WHOLE, "")

    def refused(self, asked: Asked, reason: str, text: str) -> None:
        """In the shape of its API, with a reason."""
        excuse = self._excuse(asked, reason)
        if reason in ORDINARY or excuse is not None:
            if excuse is not None:
                excuse.refused += 1
            self._settle(asked, Outcome.REFUSED, f"{reason}: {text}", reason)
        else:
            self._lose(asked, f"refused although nothing was wrong: {reason}: {text}")

    def broken(self, asked: Asked, why: str) -> None:
        """No answer, half of one, a wrong one, or the word that its engine failed."""
        excuse = self._excuse(asked)
        if excuse is None:
            self._lose(asked, why)
        else:
            excuse.cut += 1
            self._settle(asked, Outcome.CUT, f"by {excuse.fault}: {why}")

    def wrong(self, asked: Asked, why: str) -> None:
        """Whole and not what it should have been: no fault excuses that."""
        self._lose(asked, f"a wrong answer: {why}")

    @contextmanager
    def excusing(self, excuse: Excuse) -> Iterator[Excuse]:
        with self._lock:
            self._excuses.append(excuse)
        try:
            yield excuse
        finally:
            excuse.ended_s = time.monotonic()

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._open)

    def note(self, text: str) -> None:
        self._log.write(f"{time.monotonic():.3f} {text}\n")

    def close(self) -> None:
        self._log.close()

    def _excuse(self, asked: Asked, reason: str = "") -> Excuse | None:
        with self._lock:
            recent = [one for one in reversed(self._excuses[-20:]) if asked.began_s <= one.ended_s]
        return next((one for one in recent if one.covers(asked) or reason in one.refusals), None)

    def _lose(self, asked: Asked, why: str) -> None:
        text = f"{asked.what} of {asked.model or 'nobody'}, {time.monotonic() - asked.began_s:.2f} s: {why}"
        with self._lock:
            self.lost.append(text)
            if self._excuses:
                self._excuses[-1].lost.append(text)
        self._settle(asked, Outcome.LOST, why)

    def _settle(self, asked: Asked, outcome: Outcome, why: str, reason: str = "") -> None:
        asked.outcome = outcome
        with self._lock:
            self.totals[outcome] += 1
            if reason:
                self.reasons[reason] += 1
            if self._log.closed:
                return
            times = f"{asked.began_s:.3f} +{time.monotonic() - asked.began_s:.3f}"
            self._log.write(f"{times} {outcome} {asked.what} {asked.model} {' '.join(why.split())[:400]}\n")
