"""What is known of each model that is there, held in little: there may be thousands, and hardly anybody asks."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from struct import Struct
from typing import NamedTuple

_PACKED = Struct("=qqqqI")
_UNKNOWN = -1


class Known(NamedTuple):
    """Of a model that is there its number in the registry, and what its files are like: 0 where nobody could look.
    ``last`` is what they were like when somebody could. ``need_bytes`` is what it would need, None where nobody has
    calculated that, and ``need_of`` of which settings.
    """

    number: int
    mark: int
    last: int
    need_bytes: int | None = None
    need_of: str = ""


class KnownModels(MutableMapping[str, Known]):
    """By the models' names. Of each there is one object, which is made into a :class:`Known` when somebody asks."""

    __slots__ = ("_ofs", "_packed")

    def __init__(self, known: Iterable[tuple[str, Known]] = ()) -> None:
        self._packed: dict[str, bytes] = {}
        self._ofs: list[str] = []
        """Which settings there are needs of: a few, whatever the number of models."""
        self.update(known)

    def __getitem__(self, name: str) -> Known:
        number, mark, last, need_bytes, of = _PACKED.unpack(self._packed[name])
        return Known(number, mark, last, None if need_bytes == _UNKNOWN else need_bytes, self._ofs[of])

    def __setitem__(self, name: str, one: Known) -> None:
        if one.need_of not in self._ofs:
            self._ofs.append(one.need_of)
        need_bytes = _UNKNOWN if one.need_bytes is None else one.need_bytes
        self._packed[name] = _PACKED.pack(*one[:3], need_bytes, self._ofs.index(one.need_of))

    def __delitem__(self, name: str) -> None:
        del self._packed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, KnownModels) and self._ofs == other._ofs:
            return self._packed == other._packed
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def becoming(self, other: "KnownModels") -> "KnownModels":
        """The other one; what both have is this one's, which is in memory already."""
        made = KnownModels()
        made._ofs = list(self._ofs)
        for name, one in other.items():
            made[name] = one
        made._packed |= {name: mine for name, mine in self._packed.items() if made._packed.get(name) == mine}
        return self if made._packed == self._packed else made

    def changed(self, new: Mapping[str, Known], gone: Iterable[str]) -> "KnownModels":
        """With these instead of, or beside, those that were there; without ``gone``."""
        made = KnownModels()
        made._ofs, made._packed = list(self._ofs), dict(self._packed)
        for name in gone:
            made._packed.pop(name, None)
        made.update(new)
        return made
