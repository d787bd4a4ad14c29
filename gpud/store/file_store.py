"""The Store of ``core/ports.py``: one lock for the database, none for the records of engines."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpud.core.events import Logged
from gpud.core.learning import Measured, Residual
from gpud.core.ports import RunnerRecord
from gpud.core.quote import Estimate
from gpud.store.database import Database
from gpud.store.event_log import EventLog
from gpud.store.models import ModelRegistry
from gpud.store.probes import Probes
from gpud.store.problems import Problems
from gpud.store.records import EngineRecords
from gpud.store.sizes import Sizes

log = logging.getLogger(__name__)

DATABASE = "registry.db"


class FileStore:
    """What is about records never waits for the database and may be called on the event loop; the rest in threads.

    The database is opened by the first call that needs it: whoever wants only the records never touches it.
    ``on_problem`` is told in the thread of the call that met the problem.
    """

    def __init__(self, *, runtime_dir: Path, state_dir: Path, on_problem: Callable[[str], None] | None = None) -> None:
        self._problems = Problems(on_problem or (lambda problem: log.error("%s", problem)))
        self._records = EngineRecords(runtime_dir / "engines", self._problems)
        self._lock = threading.Lock()
        self._database = Database(state_dir / DATABASE, self._problems)
        self._sizes = Sizes(self._database)
        self._probes = Probes(self._database)
        self._events = EventLog(self._database)
        self._models = ModelRegistry(self._database, self._turn)

    @property
    def problem(self) -> str:
        return self._problems.text

    # Engines ---------------------------------------------------------------------------------------------------------

    def records(self) -> tuple[RunnerRecord, ...]:
        found = self._records.all()
        self._problems.tell()
        return found

    def keep(self, record: RunnerRecord) -> None:
        self._records.keep(record)
        self._problems.tell()

    def forget(self, unit: str) -> None:
        self._records.forget(unit)
        self._problems.tell()

    # The database ----------------------------------------------------------------------------------------------------

    def learn(self, key: str, measured: Measured) -> None:
        with self._turn():
            self._sizes.learn(key, measured)

    def learned(self, key: str) -> Measured | None:
        with self._turn():
            return self._sizes.learned(key)

    def learn_residual(self, place: str, residual_bytes: int) -> None:
        with self._turn():
            self._sizes.learn_residual(place, residual_bytes)

    def residual(self, place: str) -> Residual | None:
        with self._turn():
            return self._sizes.residual(place)

    def keep_probe(self, key: str, estimate: Estimate) -> None:
        with self._turn():
            self._probes.keep(key, estimate)

    def probed(self, key: str) -> Estimate | None:
        with self._turn():
            return self._probes.get(key)

    def log(self, entries: Sequence[Logged]) -> None:
        with self._turn():
            self._events.add(entries)

    def logged(self, model: str = "", limit: int = 100) -> tuple[Logged, ...]:
        with self._turn():
            return self._events.latest(model, limit)

    @property
    def registry(self) -> ModelRegistry:
        """What is remembered of models, in the same database and by the same turns."""
        return self._models

    def close(self) -> None:
        """What is given later is not kept: the daemon has ended by then."""
        with self._turn():
            self._probes.flush()
            self._models.close()
            self._database.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time; what went wrong is told once the next one may come."""
        try:
            with self._lock:
                yield
        finally:
            self._problems.tell()
