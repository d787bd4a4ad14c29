"""The records of all models, made when somebody looks at them: of thousands at rest only their names differ."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from gpud.core.facts import ModelStatus, State
from gpud.dbus.bus import clean_text
from gpud.dbus.render import Record, WallClock, model_record, text, words
from gpud.dbus.writing import Encoded, Writer

NAMES = ("Id", "DisplayName", "Aliases")
"""With these each record begins, and they alone differ between models at rest that are loaded in the same way."""


class ModelRecords(Encoded, Sequence[Record]):
    """As a list of records that holds the statuses alone."""

    def __init__(self, statuses: Sequence[ModelStatus], clock: WallClock) -> None:
        self._statuses = statuses
        self._clock = clock.still()

    def __len__(self) -> int:
        return len(self._statuses)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [model_record(status, self._clock) for status in self._statuses[index]]
        return model_record(self._statuses[index], self._clock)

    def __iter__(self) -> Iterator[Record]:
        return (model_record(status, self._clock) for status in self._statuses)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ModelRecords):
            return self.same(other)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def same(self, other: "ModelRecords", but: frozenset[str] = frozenset()) -> bool:
        """Whether nothing differs between them, but for these keys."""
        if len(self) != len(other):
            return False
        same_time = self._clock.same_as(other._clock)
        for mine, theirs in zip(self._statuses, other._statuses, strict=True):
            if mine is theirs and (same_time or mine.state is State.COLD):
                continue
            own, others = model_record(mine, self._clock), model_record(theirs, other._clock)
            if own != others and (not but or _without(own, but) != _without(others, but)):
                return False
        return True

    def contents(self) -> Iterable[bytes]:
        writer = Writer(clean_text)
        tails: dict[tuple[object, ...], bytes] = {}
        for status in self._statuses:
            if status.state is not State.COLD or status.last_used_s is not None:
                yield writer.record(model_record(status, self._clock))
                continue
            key = _but_for_its_names(status)
            tail = tails.get(key)
            if tail is None:
                record = model_record(status, self._clock)
                tail = tails[key] = writer.record({name: record[name] for name in record if name not in NAMES})
            name, aliases = text(status.model.name), words(status.model.aliases)
            head = writer.record({"Id": name, "DisplayName": name, "Aliases": aliases})
            yield head + b"\0" * (-len(head) & 7) + tail


def _without(record: Record, keys: frozenset[str]) -> Record:
    return {key: value for key, value in record.items() if key not in keys}


def _but_for_its_names(status: ModelStatus) -> tuple[object, ...]:
    """Everything that the record of a model at rest is made of besides."""
    model = status.model
    return (
        *(model.engine, model.settings.context, model.pinned, status.reason, status.device, status.need_bytes),
        *(status.used_bytes, status.in_flight, status.holds, status.waiting, status.unload_at_s, status.retry_at_s),
        *(status.retries, status.attempts, status.restarts, status.load_seconds, status.error, status.error_code),
        *(status.error_hint, status.endpoint, status.pids, status.shares, status.waits_for, status.reduced),
        *(status.source, status.kv_bytes, status.idle_timeout_s, status.progress),
    )
