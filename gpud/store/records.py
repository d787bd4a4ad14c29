"""The records of running engines: one small JSON file each, written beside its place and renamed into it."""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from gpud.core.facts import Endpoint
from gpud.core.ports import ChildRecord, RunnerRecord
from gpud.core.quote import Share
from gpud.store.problems import Problems

log = logging.getLogger(__name__)

TOPIC = "records"

_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


class EngineRecords:
    """Never blocks for long: the directory is in memory. Never raises for what the file system refuses."""

    def __init__(self, directory: Path, problems: Problems) -> None:
        self._directory = directory
        self._problems = problems

    def all(self) -> tuple[RunnerRecord, ...]:
        found = []
        try:
            paths = sorted(self._directory.glob("*.json"))
            # A daemon that was killed while it wrote one left half of it; what it wrote over is still there.
            for half in self._directory.glob("*.new"):
                half.unlink(missing_ok=True)
        except OSError as error:
            self._problems.say(TOPIC, f"cannot read the records of running engines in {self._directory}: {error}")
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
        path = self._path(record.unit)
        beside = path.with_suffix(".new")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Records carry the engines' keys: nobody else may read them.
            with os.fdopen(os.open(beside, _ANEW, 0o600), "w", encoding="utf-8") as file:
                file.write(json.dumps(to_builtins(record)))
            beside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            self._problems.say(
                TOPIC,
                f"cannot write {path}: {error.strerror or error}; "
                "what is loaded works, but a restarted gpud may not know it",
            )
        else:
            self._problems.solved(TOPIC)

    def forget(self, unit: str) -> None:
        try:
            self._path(unit).unlink(missing_ok=True)
        except OSError as error:
            self._problems.say(TOPIC, f"cannot remove the record of {unit}: {error}")

    def _path(self, unit: str) -> Path:
        return self._directory / f"{unit}.json"


def _record_from(content: dict[str, Any]) -> RunnerRecord:
    child = content.pop("child")
    endpoint = content.pop("endpoint")
    devices = content.pop("devices")
    shares = content.pop("shares")
    return RunnerRecord(
        **content,
        endpoint=Endpoint(**endpoint),
        devices=tuple(devices),
        shares=tuple(Share(**share) for share in shares),
        child=None if child is None else ChildRecord(**child),
    )
