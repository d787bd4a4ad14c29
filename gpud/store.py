"""What survives the daemon: a record of each running engine, and what models were measured to hold.

Records are about living processes. They live in the runtime directory, in memory, so that they are gone after a
reboot and a full disk cannot lose them. Measurements live in the state directory. Neither ever stops a load: what
cannot be written is said once, in ``problem``, and work goes on.

:meth:`FileStore.learned` and :meth:`FileStore.learn` may be called from threads.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpud.core.facts import Endpoint
from gpud.core.ports import ChildRecord, RunnerRecord

log = logging.getLogger(__name__)

# What is kept of measurements: the latest of this many settings. A laboratory has hundreds of models, not thousands.
MEASUREMENTS_KEPT = 2000

_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


class FileStore:
    """The Store of ``core/ports.py`` on plain files, each written beside and renamed."""

    def __init__(self, *, runtime_dir: Path, state_dir: Path, on_problem: Callable[[str], None] | None = None) -> None:
        self._records_dir = runtime_dir / "engines"
        self._measurements_file = state_dir / "measurements.json"
        self._on_problem = on_problem or (lambda problem: log.error("%s", problem))
        # By directory: that records can be written again says nothing of measurements.
        self._problems: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._measurements = self._read_measurements()

    @property
    def problem(self) -> str:
        return "; ".join(self._problems.values())

    # Engines ---------------------------------------------------------------------------------------------------------

    def records(self) -> tuple[RunnerRecord, ...]:
        found = []
        try:
            paths = sorted(self._records_dir.glob("*.json"))
        except OSError as error:
            self._complain(
                self._records_dir, f"cannot read the records of running engines in {self._records_dir}: {error}"
            )
            return ()
        for path in paths:
            try:
                record = _record_from(json.loads(path.read_text()))
                if record.unit != path.stem:
                    raise ValueError(f'it is of "{record.unit}"')
                found.append(record)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                # Nothing can be adopted by it. What it was about is found as a stranger in its cgroup leaf.
                log.error("Setting aside the unreadable engine record %s: %r", path, error)
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".unreadable"))
        return tuple(found)

    def keep(self, record: RunnerRecord) -> None:
        self._write(self._path(record.unit), json.dumps(asdict(record)))

    def forget(self, unit: str) -> None:
        try:
            self._path(unit).unlink(missing_ok=True)
        except OSError as error:
            self._complain(self._records_dir, f"cannot remove the record of {unit}: {error}")

    def _path(self, unit: str) -> Path:
        return self._records_dir / f"{unit}.json"

    # Measurements ----------------------------------------------------------------------------------------------------

    def learned(self, key: str) -> int | None:
        with self._lock:
            return self._measurements.get(key)

    def learn(self, key: str, used_bytes: int) -> None:
        with self._lock:
            if self._measurements.get(key) == used_bytes:
                return
            self._measurements.pop(key, None)
            self._measurements[key] = used_bytes
            while len(self._measurements) > MEASUREMENTS_KEPT:
                del self._measurements[next(iter(self._measurements))]
            text = json.dumps({"version": 1, "used_bytes": self._measurements})
            self._write(self._measurements_file, text)

    def _read_measurements(self) -> dict[str, int]:
        try:
            content = json.loads(self._measurements_file.read_text())
            measured = {str(key): int(value) for key, value in content["used_bytes"].items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._complain(self._measurements_file.parent, f"cannot read {self._measurements_file}: {error}")
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.error("Measured sizes in %s are unreadable and are measured anew: %s", self._measurements_file, error)
            return {}
        return measured

    # Files -----------------------------------------------------------------------------------------------------------

    def _write(self, path: Path, text: str) -> None:
        beside = path.with_suffix(".new")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Records carry the engines' keys: nobody else may read them.
            with os.fdopen(os.open(beside, _ANEW, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
            beside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            self._complain(
                path.parent,
                f"cannot write {path}: {error.strerror or error}; "
                "what is loaded works, but a restarted gpud may not know it",
            )
        else:
            self._problems.pop(path.parent, None)

    def _complain(self, directory: Path, problem: str) -> None:
        if problem != self._problems.get(directory):
            self._problems[directory] = problem
            self._on_problem(problem)


def _record_from(content: dict[str, Any]) -> RunnerRecord:
    child = content.pop("child")
    endpoint = content.pop("endpoint")
    devices = content.pop("devices")
    return RunnerRecord(
        **content,
        endpoint=Endpoint(**endpoint),
        devices=tuple(devices),
        child=None if child is None else ChildRecord(**child),
    )
