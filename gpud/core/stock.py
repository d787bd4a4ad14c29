"""All models by their names, held in little: of thousands that were found nearly all differ in nothing but their files.

Pure and unchangeable: whoever wants other models makes another one.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, cast

from gpud.core.facts import EngineSettings, Model
from gpud.core.record import replace

_FILES = ("file", "mmproj", "draft_file", "ollama_name")
_OWN = frozenset(("name", "aliases", "settings", "alternatives"))

_files_of = attrgetter(*_FILES)
_settings_of = attrgetter(*(name for name in EngineSettings.__struct_fields__ if name not in _FILES))
_rest_of = attrgetter(*(name for name in Model.__struct_fields__ if name not in _OWN))

_ITS_OWN = "\0"
"""Stands in a pattern where each model has a file of its own: no path and no name has this in it."""

Kept = tuple[Any, ...]
"""Of one model: its pattern, and what it alone has: ``(pattern, file)``, or with more behind it
``(pattern, file, mmproj, draft_file, ollama_name, aliases)``. One that no pattern fits stands there itself.
"""


class Stock(Mapping[str, Model]):
    """Each model is made when somebody asks for it. Of pairs with one name the last one counts."""

    __slots__ = ("_aliases", "_kept", "_patterns")

    def __init__(self, models: Mapping[str, Model] | Iterable[tuple[str, Model]] = ()) -> None:
        self._patterns: dict[object, Model] = {}
        pairs = models.items() if isinstance(models, Mapping) else models
        self._kept: dict[str, Kept] = {name: self._pack(name, model, {}) for name, model in pairs}
        self._aliases = self._all_aliases()

    @classmethod
    def of(cls, models: Mapping[str, Model]) -> "Stock":
        return models if isinstance(models, Stock) else cls(models)

    # As a mapping

    def __getitem__(self, name: str) -> Model:
        return _unpacked(name, self._kept[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def __eq__(self, other: object) -> bool:
        """Also of the order nothing is said: it is no difference."""
        if isinstance(other, Stock):
            return self is other or self._kept == other._kept
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    # What can be said without making one

    def meaning(self, name: str) -> str | None:
        """Which model this is a name of: the name itself, or an alias."""
        return name if name in self._kept else self._aliases.get(name)

    def owner(self, name: str) -> str:
        """Of which model this is the name or an alias; empty: of none."""
        return self.meaning(name) or ""

    def aliases(self) -> Collection[str]:
        return self._aliases.keys()

    def aliases_of(self, name: str) -> tuple[str, ...]:
        kept = self._kept[name]
        if isinstance(kept[0], str):
            return cast("Model", kept[1]).aliases
        return cast("tuple[str, ...]", kept[5]) if len(kept) > 2 else ()

    def pattern(self, name: str) -> Model:
        """All of it but for its name, its files and its aliases: the very same object for all that are alike."""
        kept = self._kept[name]
        return cast("Model", kept[1] if isinstance(kept[0], str) else kept[0])

    def file_of(self, name: str) -> str:
        """What it is loaded from by the first of its engines; empty: no file."""
        kept = self._kept[name]
        if isinstance(kept[0], str):
            return cast("Model", kept[1]).settings.file
        return cast("str", kept[1]) if kept[0].settings.file else ""

    def same(self, other: "Stock", name: str) -> bool:
        """Whether both have the same under this name."""
        return self._kept.get(name) == other._kept.get(name)

    # Others

    def changed(self, new: Mapping[str, Model], gone: Collection[str] = ()) -> "Stock":
        """With these instead of, or beside, those that were there; without ``gone``."""
        made = Stock()
        made._patterns = dict(self._patterns)
        made._kept = {name: kept for name, kept in self._kept.items() if name not in gone}
        for name, model in new.items():
            made._kept[name] = made._pack(name, model, self._patterns)
        made._aliases = made._all_aliases()
        return made

    def becoming(self, others: "Stock") -> "Stock":
        """These others; what both have is this one's, which is in memory already."""
        same = {id(pattern): self._patterns.get(key, pattern) for key, pattern in others._patterns.items()}
        new = {name: _with_pattern(kept, same) for name, kept in others._kept.items()}
        differ = {name: kept for name, kept in new.items() if self._kept.get(name) != kept}
        if not differ and len(new) == len(self._kept):
            return self
        made = Stock()
        made._patterns = {key: same[id(pattern)] for key, pattern in others._patterns.items()}
        made._kept = {name: kept for name, kept in self._kept.items() if name in new} | differ
        made._aliases = made._all_aliases()
        return made

    # ---------------------------------------------------------------------------------------------------------------

    def _all_aliases(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, kept in self._kept.items():
            if isinstance(kept[0], str) or len(kept) > 2:
                for alias in self.aliases_of(name):
                    found.setdefault(alias, name)
        return found

    def _pack(self, name: str, model: Model, known: Mapping[object, Model]) -> Kept:
        ways = (model, *model.alternatives)
        of_each = [_files_of(way.settings) for way in ways]
        own = tuple(next(filter(None, values), "") for values in zip(*of_each, strict=True))
        if not _fits(name, ways, of_each, own):
            return (name, model)
        # Which files there are, and whatever else there is to say of it.
        key = tuple(
            (*map(bool, files), bool(way.aliases), _settings_of(way.settings), _rest_of(way))
            for way, files in zip(ways, of_each, strict=True)
        )
        try:
            pattern = self._patterns.get(key) or known.get(key) or _pattern(model)
        except TypeError:
            # It has something in it that can be compared only by looking at it.
            return (name, model)
        self._patterns[key] = pattern
        return (pattern, own[0]) if not model.aliases and not any(own[1:]) else (pattern, *own, model.aliases)


def _with_pattern(kept: Kept, same: Mapping[int, Model]) -> Kept:
    pattern = same.get(id(kept[0]))
    return kept if pattern is None or pattern is kept[0] else (pattern, *kept[1:])


def _fits(name: str, ways: tuple[Model, ...], of_each: Sequence[tuple[str, ...]], own: tuple[str, ...]) -> bool:
    """Whether its ways differ in nothing that a pattern cannot say."""
    aliases = ways[0].aliases
    return all(
        way.name == name and (way is ways[0] or not way.alternatives) and way.aliases in ((), aliases) for way in ways
    ) and all(files == own or all(map(_alike, files, own)) for files in of_each)


def _alike(one: str, own: str) -> bool:
    return one in ("", own)


def _pattern(model: Model) -> Model:
    own = (_ITS_OWN if value else "" for value in _files_of(model.settings))
    aliases = (_ITS_OWN,) if model.aliases else ()
    others = tuple(_pattern(other) for other in model.alternatives)
    return replace(model, name="", aliases=aliases, settings=_with_files(model.settings, *own), alternatives=others)


def _unpacked(name: str, kept: Kept) -> Model:
    pattern = kept[0]
    if isinstance(pattern, str):
        return cast("Model", kept[1])
    if len(kept) == 2:
        return _filled(pattern, name, (kept[1], "", "", ""), ())
    return _filled(pattern, name, kept[1:5], kept[5])


def _filled(pattern: Model, name: str, own: tuple[str, ...], aliases: tuple[str, ...]) -> Model:
    has = _files_of(pattern.settings)
    settings = pattern.settings
    if any(has):
        settings = _with_files(settings, *(value if wanted else "" for value, wanted in zip(own, has, strict=True)))
    return replace(
        pattern,
        name=name,
        settings=settings,
        aliases=aliases if pattern.aliases else (),
        alternatives=tuple(_filled(other, name, own, aliases) for other in pattern.alternatives),
    )


def _with_files(settings: EngineSettings, file: str, mmproj: str, draft_file: str, ollama_name: str) -> EngineSettings:
    return replace(settings, file=file, mmproj=mmproj, draft_file=draft_file, ollama_name=ollama_name)
