"""What a look at the disks comes to: names, entries, and what each found model is loaded with. For threads.

Decides; when is looked, and who is told, is the library's business.
"""

import logging
import pickle
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from gpud.core import naming
from gpud.core.catalogue import Entry, Finding, Format, Found, Place, Purpose, Roots, Source, Trouble
from gpud.core.facts import Model, Priority
from gpud.core.ports import Aside, Finder, Line, Registry, Remembered
from gpud.core.record import Record, field, replace
from gpud.core.stock import Stock
from gpud.engine.known import Known, KnownModels

log = logging.getLogger(__name__)

Makes = Callable[[Entry], Model | str]
"""What a found model is loaded with, or why it cannot be, as a sentence."""


class Past(NamedTuple):
    """How often a model was used before gpud started, and when it was used last."""

    uses: int
    last_used_us: int | None


class Held(Record):
    """What is held in memory of all entries: as little as can be, for there may be thousands. ``past`` has only those
    that were ever used.
    """

    models: Stock = field(default_factory=Stock)
    known: KnownModels = field(default_factory=KnownModels)
    past: Mapping[str, Past] = field(default_factory=dict)

    def becoming(self, other: "Held") -> "Held":
        """The other one; what both have is this one's, which is in memory already."""
        return Held(self.models.becoming(other.models), self.known.becoming(other.known), other.past)

    def keep_needs(self, before: "Held") -> None:
        """What was calculated is known of the same files, whether or not it was written down yet."""
        for name, old in before.known.items():
            one = self.known.get(name)
            if one is not None and old.need_bytes is not None and one[:2] == old[:2]:
                self.known[name] = one._replace(need_bytes=old.need_bytes, need_of=old.need_of)


def _nothing(_entry: Entry) -> Model | str:
    return "nothing is looked for"


class Shelf(Record):
    """What of the configuration is about models on disk.

    ``configured`` are its own models; ``makes``, asked anew for each look, knows what it says of those that are found.
    Every ``interval_s`` is looked at what cannot be watched; 0: never.
    """

    configured: Mapping[str, Model] = field(default_factory=dict)
    roots: Roots = field(default_factory=Roots)
    makes: Callable[[], Makes] = lambda: _nothing
    interval_s: float = 0.0
    on_start: bool = True


class Look(Record):
    """One look at everything: at what, by whom, when, and what is held of the models so far."""

    finder: Finder
    shelf: Shelf
    at_us: int
    before: Held


def find(look: Look, registry: Remembered, stop: Callable[[], bool]) -> tuple[Finding, tuple[Entry, ...]]:
    """For a thread: look, name, keep."""
    shelf, at_us = look.shelf, look.at_us
    known = registry.entries()
    finding = look.finder.scan(shelf.roots, found_by_path(known), stop)
    out_of_reach = tuple(f"{root.rstrip('/')}/" for root in finding.unreachable)
    away = [entry.found for entry in known if entry.present and f"{entry.found.path}/".startswith(out_of_reach)]
    elsewhere = {place.path for one in finding.models for place in one.places} if away else set()
    # Those that have another place within reach have been found there.
    kept = [one for one in away if elsewhere.isdisjoint(place.path for place in one.places)]
    configured = configured_places(shelf, finding.models)
    taken = names_configured(shelf) | {alias for entry in known for alias in entry.aliases}
    named = naming.name_all((*finding.models, *kept), known, configured, taken)
    past = {entry.name: entry for entry in known}
    entries = [entry_as_named(one, past.get(one.name), shelf, at_us) for one in named]
    seen, claimed = {entry.name for entry in entries}, {entry.id for entry in entries}
    for name, model in shelf.configured.items():
        if name not in seen:
            own = unseen(model, configured=True)
            before = past.get(name)
            if before is not None and before.id not in claimed:
                own = replace(before, found=own.found, present=True, configured=True)
            entries.append(own)
    return finding, registry.take(entries, at_us)


def look_at_everything(
    look: Look, registry: Registry, stop: Callable[[], bool], aside: Aside | None
) -> tuple[Held, Finding, list[Trouble]]:
    """For a thread: all of it, and what comes of it. Of the finding the models are left out.

    A look makes some megabytes of records, and what is to stay would lie among them: it is done in a copy of this
    process, which writes down what it comes to. Where that cannot be it is done here, in the same way.
    """
    written = None if aside is None else _looked_aside(look, registry, stop, aside)
    if written is None:
        written = _looked(look, registry, stop)
    held, finding, refused = pickle.loads(written)  # noqa: S301 -- written a moment ago, by ourselves
    return look.before if held is None else look.before.becoming(held), finding, refused


def _looked_aside(look: Look, registry: Registry, stop: Callable[[], bool], aside: Aside) -> bytes | None:
    """None where it could not be done there, or could not be kept."""
    finder = look.finder

    def work(line: Line) -> None:
        finder.in_copy()
        written = _looked(look, registry.borrowed(line), line.is_cut)
        line.send((finder.kept(), written))

    def serve(line: Line) -> tuple[object, bytes] | None:
        return line.receive() if registry.lend(line) else None

    done: tuple[object, bytes] | None = None
    finder.lend()
    try:
        done = aside(work, serve, stop, finder.descriptors())
    except (OSError, EOFError) as problem:
        log.warning("cannot look for models in a process of its own: %s; it is done in this one", problem)
    finally:
        finder.take_back(None if done is None else done[0])
    return None if done is None else done[1]


def _looked(look: Look, registry: Remembered, stop: Callable[[], bool]) -> bytes:
    """Of what is held nothing is written where it is what was held before."""
    before = look.before
    finding, entries = find(look, registry, stop)
    held, refused = held_of(look.shelf, entries, before.known)
    held.keep_needs(before)
    now = before.becoming(held)
    is_new = now.models is not before.models or now.known is not before.known or now.past != before.past
    return pickle.dumps((held if is_new else None, replace(finding, models=()), refused))


def held_of(shelf: Shelf, entries: Collection[Entry], old: Mapping[str, Known]) -> tuple[Held, list[Trouble]]:
    """For a thread."""
    refused: list[Trouble] = []
    models = Stock(chain(shelf.configured.items(), made_of(shelf, entries, refused)))
    return Held(models, known_of(entries, shelf, old), past_of(entries)), refused


def past_of(entries: Collection[Entry]) -> dict[str, Past]:
    return {
        entry.name: Past(entry.usage_count, entry.last_used_us)
        for entry in entries
        if entry.present and (entry.usage_count or entry.last_used_us is not None)
    }


def made_of(shelf: Shelf, entries: Collection[Entry], refused: list[Trouble]) -> Iterator[tuple[str, Model]]:
    """For a thread: what each of those that were found is loaded with. ``refused`` is told which cannot be."""
    makes = shelf.makes()
    here = [entry for entry in entries if entry.present]
    taken = names_configured(shelf)
    # The name of one that is away for a moment must not mean another one meanwhile.
    others = naming.other_names(here, taken | {entry.name for entry in entries if not entry.present})
    taken |= {entry.name for entry in here}
    for entry in here:
        model: Model | str
        if entry.name in shelf.configured:
            model = shelf.configured[entry.name]
            if not entry.aliases and not entry.priority:
                continue
        elif entry.found.purpose is Purpose.ADAPTER or entry.found.places[0].source is Source.CONFIGURATION:
            continue
        else:
            model = entry.found.problem or makes(entry)
        if isinstance(model, Model):
            # What somebody has called it may be another's name by now.
            aliases = tuple(alias for alias in entry.aliases if alias not in taken or alias in model.aliases)
            yield entry.name, _annotated(model, entry, (*aliases, *others.get(entry.name, ())))
        else:
            refused.append(Trouble(entry.found.path, model))


def remembered(registry: Registry, shelf: Shelf, before: Held) -> Held:
    """For a thread: what was there at the last look, as the configuration wants it now; what is configured since
    has its number from now on.
    """
    return before.becoming(pickle.loads(_remembered(registry, shelf)))  # noqa: S301 -- as in look_at_everything()


def taken_anew(registry: Registry, shelf: Shelf, before: Held) -> Held:
    """For a thread: after something was said about a model, without a look at the disk."""
    made = Stock(chain(shelf.configured.items(), made_of(shelf, registry.entries(), [])))
    return Held(before.models.becoming(made), before.known, before.past)


def _remembered(registry: Registry, shelf: Shelf) -> bytes:
    entries = registry.entries()
    by_name = {entry.name: entry for entry in entries}
    by_path = {place.path: entry for entry in entries for place in entry.found.places}
    path_of = {name: path for path, name in configured_places(shelf, [entry.found for entry in entries]).items()}
    new: dict[int, Entry] = {}
    for name, model in shelf.configured.items():
        # Whoever writes a model down that was found already means that one.
        past = by_name.get(name) or by_path.get(path_of.get(name, ""))
        if past is None or past.name in shelf.configured.keys() - {name} or past.id in new:
            past = unseen(model, configured=True)
        if past.name != name or not past.present or not past.id:
            new[past.id or -len(new) - 1] = replace(past, name=name, present=True, configured=True)
    if new:
        here = [entry for entry in entries if entry.present and entry.id not in new]
        entries = registry.take([*here, *new.values()], time.time_ns() // 1000)
    # What was only configured until now may be found as well: the next look says so.
    roots = tuple(f"{root.rstrip('/')}/" for root in shelf.roots.all())
    here = [
        entry
        for entry in entries
        if entry.name in shelf.configured or (roots and (not entry.configured or entry.found.path.startswith(roots)))
    ]
    models = Stock(chain(shelf.configured.items(), made_of(shelf, here, [])))
    return pickle.dumps(Held(models, known_of(entries, shelf, {}), past_of(entries)))


def known_of(entries: Collection[Entry], shelf: Shelf, old: Mapping[str, Known]) -> KnownModels:
    known = KnownModels()
    for entry in entries:
        if entry.present:
            model = shelf.configured.get(entry.name)
            is_its_file = model is None or any(place.path == model.settings.file for place in entry.found.places)
            mark = hash(entry.found.stamp) if entry.found.stamp and is_its_file else 0
            before = old.get(entry.name)
            last = mark or (0 if before is None else before.last)
            known[entry.name] = Known(entry.id, mark, last, entry.estimate_bytes, entry.estimate_of)
    return known


def found_by_path(known: Collection[Entry]) -> dict[str, Found]:
    return {place.path: entry.found for entry in known for place in entry.found.places if entry.found.stamp}


def entry_as_named(named: naming.Named, past: Entry | None, shelf: Shelf, at_us: int) -> Entry:
    past = named.known or past
    found = named.found
    if past is None:
        return Entry(
            0, named.name, found, first_seen_us=at_us, last_scanned_us=at_us, configured=named.name in shelf.configured
        )
    estimate = past.estimate_bytes if past.found.stamp == found.stamp else None
    return replace(
        past,
        name=named.name,
        found=found,
        estimate_bytes=estimate,
        present=True,
        configured=named.name in shelf.configured,
        last_scanned_us=at_us,
    )


def configured_places(shelf: Shelf, found: Collection[Found]) -> dict[str, str]:
    """What the configuration calls what lies at a path: a file that it names, or a model of Ollama's store."""
    own = {
        naming.ollamas_own_name(way.settings.ollama_name): name
        for name, model in reversed(tuple(shelf.configured.items()))
        for way in (model, *model.alternatives)
        if way.settings.ollama_name
    }
    places = {
        place.path: own[naming.ollamas_own_name(place.name)]
        for one in found
        for place in one.places
        if place.source is Source.OLLAMA and naming.ollamas_own_name(place.name) in own
    }
    return places | {model.settings.file: name for name, model in shelf.configured.items() if model.settings.file}


def names_configured(shelf: Shelf) -> set[str]:
    return {*shelf.configured, *(alias for model in shelf.configured.values() for alias in model.aliases)}


def _annotated(model: Model, entry: Entry, others: tuple[str, ...]) -> Model:
    priority = Priority[entry.priority.upper()] if entry.priority else model.priority
    aliases = tuple(dict.fromkeys((*model.aliases, *others)))
    return (
        model
        if (priority, aliases) == (model.priority, model.aliases)
        else replace(model, priority=priority, aliases=aliases)
    )


def unseen(model: Model, *, configured: bool) -> Entry:
    """A model that nobody has looked at: its engine's own business, a file that is not there, or is another's too."""
    place = Place(f"{model.engine}:{model.name}", Source.CONFIGURATION, model.name)
    found = Found((place,), Format.OTHER, stamp="", size_bytes=0, ollama_name=model.settings.ollama_name)
    return Entry(0, model.name, found, configured=configured)
