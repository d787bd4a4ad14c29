"""What single files that have come, gone or changed come to, without a look at everything. For threads.

Comes to the same as a look at everything would, or says that it cannot.
"""

from collections.abc import Collection, Mapping

from gpud.core import naming
from gpud.core.catalogue import Entry, Finding, Trouble
from gpud.core.facts import Model
from gpud.core.ports import Finder, Registry
from gpud.core.record import Record, field
from gpud.core.stock import Stock
from gpud.engine.shelf import Held, Shelf, entry_as_named, found_by_path, known_of, made_of, names_configured, past_of


class Glimpse(Record):
    """``entries`` are those that are there now, ``gone`` the names of those that were, ``made`` what the former are
    loaded with.
    """

    finding: Finding = field(default_factory=lambda: Finding(()))
    entries: tuple[Entry, ...] = ()
    gone: tuple[str, ...] = ()
    made: Mapping[str, Model] = field(default_factory=dict)
    refused: tuple[Trouble, ...] = ()


def glimpse(
    finder: Finder,
    registry: Registry,
    shelf: Shelf,
    others: Stock,
    troubles: Collection[Trouble],
    at_us: int,
) -> Glimpse | None:
    """``others`` are all models that can be asked for, ``troubles`` what the last look told. None: look at all."""
    paths = finder.noticed()
    if paths is None or not paths.isdisjoint(trouble.path for trouble in troubles):
        return None
    if not paths:
        return Glimpse()
    there = registry.related(paths=paths)
    if there is None or any(_has_more(entry, shelf) for entry in there):
        return None
    finding = finder.look_at(shelf.roots, paths, found_by_path([entry for entry in there if entry.present]))
    names = registry.names()
    alike = registry.related(sizes={one.size_bytes for one in finding.models}) if finding is not None else None
    if finding is None or names is None or alike is None:
        return None
    named = _named(finding, there, alike, shelf, names)
    shown = others.aliases()
    for one in named:
        is_taken_over = one.known is None and one.name in names
        # One whose short name somebody else has may be called by it later on: that decides who looks at all of them.
        is_called_otherwise = one.known is not None and bool(one.known.aliases)
        if (
            is_taken_over
            or is_called_otherwise
            or one.name in shown
            or one.name != naming.usable(one.found.places[0].name)
        ):
            return None
    entries = [entry_as_named(one, None, shelf, at_us) for one in named]
    back = {entry.id for entry in entries}
    gone = [entry for entry in there if entry.id not in back]
    if not entries and not any(entry.present for entry in gone):
        return Glimpse(finding)
    taken = registry.take_some(entries, [entry.id for entry in gone], at_us)
    if taken is None:
        return None
    here = tuple(entry for entry in taken if entry.present)
    refused: list[Trouble] = []
    made = dict(made_of(shelf, here, refused))
    return Glimpse(finding, here, tuple(entry.name for entry in gone if entry.present), made, tuple(refused))


def _has_more(entry: Entry, shelf: Shelf) -> bool:
    """Whether more hangs on it than one file under one name."""
    found = entry.found
    return bool(
        len(found.places) != 1
        or found.parts != 1
        or found.mmproj
        or found.draft_file
        or found.digest
        or found.problem
        or entry.aliases
        or entry.name in shelf.configured
    )


def _named(
    finding: Finding, there: Collection[Entry], alike: Collection[Entry], shelf: Shelf, names: Mapping[str, bool]
) -> tuple[naming.Named, ...]:
    mine = {entry.id: entry for entry in (*there, *(entry for entry in alike if not entry.present))}
    known = [mine[id_] for id_ in sorted(mine)]
    own = {entry.name for entry in known}
    taken = names_configured(shelf) | {name for name, here in names.items() if here and name not in own}
    return naming.name_all(
        finding.models, known, {}, taken, [name for name, here in names.items() if not here and name not in own]
    )


def renewed(seen: Glimpse, held: Held, shelf: Shelf) -> Held:
    """All that is there, after this."""
    left = {entry.name for entry in seen.entries} | set(seen.gone)
    past = {name: one for name, one in held.past.items() if name not in left}
    return Held(
        held.models.changed(seen.made, left),
        held.known.changed(known_of(seen.entries, shelf, held.known), left),
        past | past_of(seen.entries),
    )
