"""The records of all models, made when somebody looks at them: of thousands at rest little more than names differ."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

from gpud.core.facts import Model, ModelStatus
from gpud.core.statuses import Patience, Statuses
from gpud.dbus.bus import clean_text
from gpud.dbus.render import NOTHING_KNOWN, Known, model_record
from gpud.dbus.values import Record, number, text, words
from gpud.dbus.wall_clock import WallClock
from gpud.dbus.writing import Encoded, Writer

NAMES = ("Id", "DisplayName", "Aliases")
"""With these each record begins; between models at rest that are loaded in the same way they differ, and ``OWN``."""

OWN = ("VramEstimate", "LastUsedUSec", "Uses")

MANY = 100
"""With more models than this the list of all has 100 KB and more: it is asked for, not sent round with each change."""

Tells = Callable[[str], Known]


def nothing_known(_name: str) -> Known:
    return NOTHING_KNOWN


class Parts:
    """The bytes of models that rest, as long as they do not change; :meth:`clear` when nobody has asked for long."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[Model, tuple[str, ...], Known, bytes]] = {}
        self._tails: dict[tuple[int, Patience], tuple[Model, bytes]] = {}

    def clear(self) -> None:
        self._parts, self._tails = {}, {}

    def missing(self, statuses: Statuses) -> int:
        """About how many would have to be made."""
        return len(statuses) - len(self._parts)

    def of(self, statuses: Statuses, clock: WallClock, tells: Tells) -> Iterator[bytes]:
        """Of all, in their order. Also for a thread, one at a time."""
        if len(self._parts) > 2 * len(statuses):
            self.clear()
        writer, stock, patience = Writer(clean_text), statuses.stock, statuses.patience
        for name in statuses.names():
            status = statuses.lively.get(name)
            known = tells(name)
            if status is not None:
                yield writer.record(model_record(status, clock, known))
                continue
            pattern, aliases = stock.pattern(name), stock.aliases_of(name)
            tail = self._tails.get((id(pattern), patience))
            if tail is None or tail[0] is not pattern:
                one = statuses.of(name)
                assert one is not None
                record = model_record(one, clock)
                shared = writer.record({key: record[key] for key in record if key not in NAMES and key not in OWN})
                tail = self._tails[id(pattern), patience] = pattern, shared
            part = self._parts.get(name)
            if part is None or part[0] is not tail[0] or part[1] != aliases or part[2] != known:
                part = pattern, aliases, known, self._head(writer, stock.pattern(name), name, aliases, known)
                self._parts[name] = part
            yield part[3] + tail[1]

    @staticmethod
    def _head(writer: Writer, pattern: Model, name: str, aliases: tuple[str, ...], known: Known) -> bytes:
        id_ = text(name)
        head = writer.record({"Id": id_, "DisplayName": id_, "Aliases": words(aliases), **own(pattern, known)})
        return head + b"\0" * (-len(head) & 7)


def own(model: Model, known: Known) -> Record:
    """What is known of a model that rests, as :func:`model_record` has it."""
    return {
        "VramEstimate": number("t", model.size_bytes or known.need_bytes),
        "LastUsedUSec": number("t", known.last_used_us),
        "Uses": number("t", known.uses),
    }


class ModelRecords(Encoded, Sequence[Record]):
    """As a list of records that holds what they are made from. ``told`` is another value whenever ``tells`` may say
    something else.
    """

    def __init__(
        self,
        statuses: Sequence[ModelStatus],
        clock: WallClock,
        tells: Tells = nothing_known,
        told: object = None,
        parts: Parts | None = None,
    ) -> None:
        self._statuses = statuses
        self._clock = clock.still()
        self._tells = tells
        self._told = told
        self._parts = parts or Parts()

    def __len__(self) -> int:
        return len(self._statuses)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._record(status) for status in self._statuses[index]]
        return self._record(self._statuses[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self._statuses)

    def _record(self, status: ModelStatus) -> Record:
        return model_record(status, self._clock, self._tells(status.model.name))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ModelRecords):
            return self.same(other)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def same(self, other: "ModelRecords", but: frozenset[str] = frozenset()) -> bool:
        """Whether nothing differs between them, but for these keys. Of very many it is enough that those that rest may
        be shown otherwise: they are not looked at one by one.
        """
        if len(self) != len(other):
            return False
        mine, theirs = self._statuses, other._statuses
        if isinstance(mine, Statuses) and isinstance(theirs, Statuses) and mine.same_rest(theirs):
            moving = dict.fromkeys((*mine.lively, *theirs.lively))
            if self._told == other._told:
                pairs = ((mine.of(name), theirs.of(name)) for name in moving)
                return all(
                    one is not None and two is not None and self._alike(other, one, two, but) for one, two in pairs
                )
        if max(len(mine), len(theirs)) > MANY:
            return False
        return all(self._alike(other, one, two, but) for one, two in zip(mine, theirs, strict=True))

    def _alike(self, other: "ModelRecords", one: ModelStatus, two: ModelStatus, but: frozenset[str]) -> bool:
        own, others = self._record(one), other._record(two)
        return own == others or bool(but and _without(own, but) == _without(others, but))

    def contents(self) -> Iterable[bytes]:
        if isinstance(self._statuses, Statuses):
            return self._parts.of(self._statuses, self._clock, self._tells)
        writer = Writer(clean_text)
        return (writer.record(record) for record in self)


def _without(record: Record, keys: frozenset[str]) -> Record:
    return {key: value for key, value in record.items() if key not in keys}
