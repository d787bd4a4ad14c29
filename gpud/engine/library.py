"""What models there are: those that are configured and those that were found on disk, as one list of names.

Owns when is looked, what is kept of it, and who is told. Looking and keeping are done in threads, by the finder and the
registry; what a found model is loaded with comes from the configuration. Entries are not held in memory: there may be
thousands of them, and they are asked for seldom.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import NamedTuple

from gpud.core import naming
from gpud.core.catalogue import Entry, Finding, Format, Found, Place, Purpose, Roots, Scanned, Source, Trouble
from gpud.core.errors import Canceled, InvalidOption, NoSuchModel
from gpud.core.events import CatalogueChanged, Kind, Level, Notice, Outcome
from gpud.core.facts import Model, Priority
from gpud.core.ports import Finder, Registry
from gpud.engine import saying
from gpud.engine.needs import Needs

log = logging.getLogger(__name__)

Makes = Callable[[Entry], Model | str]
"""What a found model is loaded with, or why it cannot be, as a sentence."""

NAMED = 10
"""So many names stand in one message; of the others there is the number."""


class _Known(NamedTuple):
    """Of a model that is there its number in the registry, and what its files are like: 0 where nobody could look.
    ``last`` is what they were like when somebody could.
    """

    number: int
    mark: int
    last: int


def _nothing(_entry: Entry) -> Model | str:
    return "nothing is looked for"


@dataclass(frozen=True, slots=True)
class Shelf:
    """What of the configuration is about models on disk.

    ``configured`` are its own models; ``makes``, asked anew for each look, knows what it says of those that are found.
    Every ``interval_s`` is looked at what cannot be watched; 0: never.
    """

    configured: Mapping[str, Model] = field(default_factory=dict)
    roots: Roots = field(default_factory=Roots)
    makes: Callable[[], Makes] = lambda: _nothing
    interval_s: float = 0.0
    on_start: bool = True


class Library:
    """For the event loop's thread. ``put`` hands over all models; ``size`` says what one would need."""

    def __init__(self, finder: Finder, registry: Registry) -> None:
        self._finder = finder
        self._registry = registry
        self._shelf = Shelf()
        self._made_of: dict[str, Model] = {}
        """Those that were found, and those that are configured and of which somebody said something by command."""
        self._known: dict[str, _Known] = {}
        self._put: Callable[[Mapping[str, Model], frozenset[str]], Awaitable[None]]
        self._tell: Callable[[tuple[Outcome, ...]], None]
        self._needs: Needs
        self._running: asyncio.Task[Scanned] | None = None
        self._following: asyncio.Task[Scanned] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()
        self._one_at_a_time = asyncio.Lock()
        self._told: frozenset[Trouble] = frozenset()
        self._counted: dict[str, int] = {}
        self._begun = False
        self.last_scan: Scanned | None = None

    def serve(
        self,
        put: Callable[[Mapping[str, Model], frozenset[str]], Awaitable[None]],
        tell: Callable[[tuple[Outcome, ...]], None],
        size: Callable[[Model], Awaitable[int | None]],
    ) -> None:
        """Whom it works for; called once, before anything else."""
        self._put, self._tell = put, tell
        self._needs = Needs(self._registry, lambda: self.models, size)

    @property
    def models(self) -> dict[str, Model]:
        """All that can be asked for now."""
        return {**self._shelf.configured, **self._made_of}

    def number_of(self, name: str) -> int:
        """The number that the registry has for a model, for ever; 0: it has none yet."""
        known = self._known.get(name)
        return 0 if known is None else known.number

    def numbered(self, number: int) -> str | None:
        """The model with this number, where it is there."""
        names = (name for name, known in self._known.items() if known.number == number)
        return next((name for name in names if name in self.models), None)

    @property
    def looks_again(self) -> bool:
        """Whether something cannot be watched, and is looked at from time to time."""
        return self._timer is not None

    @property
    def scanning(self) -> bool:
        return self._running is not None

    async def configure(self, shelf: Shelf) -> None:
        """From now on by this configuration, those that were found before, too. Whoever calls it takes the models."""
        async with self._one_at_a_time:
            before = self.models
            made, known = await asyncio.to_thread(self._remembered, shelf)
            self._shelf, self._made_of, self._known = shelf, made, known
            after = self.models
            # What was calculated is of other settings; of what is configured nobody knows with which it was.
            self._needs.anew(
                name
                for name, model in after.items()
                if (_needs_otherwise(before[name], model) if name in before else name in shelf.configured)
            )
        if self._begun:
            self.begin()
            self._needs.soon()

    def begin(self) -> None:
        """Watch from now on, and look at everything once, unless that is not wanted: then the roots alone are watched,
        for what lies below them is known only after a look.
        """
        self._begun = True
        self._watch()
        if self._shelf.on_start:
            self._changed()

    def _watch(self) -> None:
        """Only after a look is known what cannot be watched: the kernel gives so many watches and no more."""
        self._arm(self._finder.watch(self._shelf.roots, self._changed))

    async def close(self) -> None:
        """A look that is under way ends; what was counted of uses is kept."""
        self._finder.close()
        self._stopping.set()
        if self._timer is not None:
            self._timer.cancel()
        await self._needs.close()
        for task in (self._following, self._running):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def sized(self) -> None:
        """Returns when what those need that are there now has been calculated."""
        await self._needs.known()

    # What can be asked -----------------------------------------------------------------------------------------------

    async def entries(self, names: Collection[str] | None = None, *, everything: bool = False) -> tuple[Entry, ...]:
        """What is known of these models, or of all that can be loaded; ``everything``: also of adapters, and of what is
        there and cannot be loaded.
        """
        known = await asyncio.to_thread(self._registry.entries, names)
        here = self.models
        listed = [
            replace(entry, configured=entry.name in self._shelf.configured)
            for entry in known
            if entry.name in here or (everything and entry.present)
        ]
        # What was configured since the last look is not in the registry yet.
        missing = here.keys() - {entry.name for entry in listed}
        listed += [
            unseen(here[name], configured=name in self._shelf.configured)
            for name in sorted(missing)
            if names is None or name in names
        ]
        return tuple(listed)

    async def entry(self, name: str) -> Entry:
        """``name`` is one that the engine has resolved."""
        found = await self.entries((name,))
        if not found:
            raise self._no_such(name)
        return found[0]

    def _no_such(self, name: str) -> NoSuchModel:
        near = get_close_matches(name, self.models, 1, 0.5)
        return NoSuchModel(
            f'there is no model "{name}"', hint=f'did you mean "{near[0]}"?' if near else "see gpudctl models list"
        )

    # What can be wished ----------------------------------------------------------------------------------------------

    async def scan(self) -> Scanned:
        """Look at everything. One that is under way may have passed what has changed since: another follows it."""
        if self._running is None:
            self._running = asyncio.create_task(self._scan())
            return await asyncio.shield(self._running)
        if self._following is None:
            self._following = asyncio.create_task(self._scan_after(self._running))
        return await asyncio.shield(self._following)

    async def annotate(
        self,
        name: str,
        *,
        aliases: tuple[str, ...] | None = None,
        priority: str | None = None,
        tags: tuple[str, ...] | None = None,
        notes: str | None = None,
    ) -> Entry:
        """Keep what somebody says about a model; what is None stays. ``priority`` empty: as configured."""
        async with self._one_at_a_time:
            entry = await self.entry(name)
            if not entry.id:
                raise InvalidOption(
                    f'"{name}" was configured a moment ago and is not in the registry yet',
                    hint="scan first: gpudctl models scan",
                )
            entry = replace(
                entry,
                aliases=entry.aliases if aliases is None else saying.aliases(name, aliases, self.models.values()),
                priority=entry.priority if priority is None else saying.priority(priority),
                tags=entry.tags if tags is None else saying.tags(tags),
                notes=entry.notes if notes is None else saying.notes(notes),
            )
            await asyncio.to_thread(self._registry.annotate, entry)
            await self._take_anew()
        self._tell((CatalogueChanged(changed=(name,)),))
        return entry

    async def forget(self, name: str) -> None:
        """Take what is known of a model that is no longer there out of the registry, its past with it."""
        async with self._one_at_a_time:
            known = await asyncio.to_thread(self._registry.entries, (name,))
            if not known:
                raise self._no_such(name)
            if name in self.models:
                raise InvalidOption(
                    f'"{name}" is still there: {known[0].found.path}', hint="remove its file first: gpudctl models rm"
                )
            await asyncio.to_thread(self._registry.forget, known[0].id)

    async def count(self, uses: Mapping[str, tuple[int, float, float | None]], now_s: float) -> None:
        """Keep how often models were used. ``uses`` are counts since gpud started, and times on the loop's clock."""
        new = {name: use for name, use in uses.items() if use[0] > self._counted.get(name, 0)}
        if not new:
            return
        wall_us = time.time_ns() // 1000
        known = {entry.name: entry.id for entry in await asyncio.to_thread(self._registry.entries, tuple(new))}
        kept = {
            known[name]: (count - self._counted.get(name, 0), wall_us - round((now_s - last_s) * 1e6), load_s)
            for name, (count, last_s, load_s) in new.items()
            if name in known
        }
        self._counted |= {name: use[0] for name, use in new.items() if name in known}
        await asyncio.to_thread(self._registry.used, kept)

    # Looking ---------------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something on disk may be otherwise. Whoever tells of it does not wait for what is found."""
        if self._running is None:
            self._running = asyncio.create_task(self._scan())
        elif self._following is None:
            self._following = asyncio.create_task(self._scan_after(self._running))

    def _arm(self, unwatched: Collection[str]) -> None:
        """A timer only for what cannot be watched."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if unwatched and self._shelf.interval_s > 0:
            self._timer = asyncio.get_running_loop().call_later(self._shelf.interval_s, self._time_to_look)

    def _time_to_look(self) -> None:
        # What could not be watched may be watched by now: a folder that has appeared, another limit.
        self._watch()
        self._changed()

    async def _scan_after(self, other: asyncio.Task[Scanned]) -> Scanned:
        await asyncio.gather(other, return_exceptions=True)
        self._running, self._following = self._following, None
        return await self._scan()

    async def _scan(self) -> Scanned:
        try:
            async with self._one_at_a_time:
                scanned = await self._look()
        except Canceled:
            raise asyncio.CancelledError from None
        except Exception:
            log.exception("internal error: looking for models failed")
            raise
        finally:
            if self._running is asyncio.current_task():
                self._running = None
        self._report(scanned)
        if self._begun:
            self._watch()
        self._needs.soon()
        return scanned

    async def _look(self) -> Scanned:
        shelf = self._shelf
        began_s = time.monotonic()
        at_us = time.time_ns() // 1000
        finding, entries = await asyncio.to_thread(self._find, shelf, at_us)
        made, refused = await asyncio.to_thread(self._made, shelf, entries)
        before, old = self.models, self._known
        known = _known(entries, shelf, old)
        self._made_of, self._known = made, known
        after = self.models
        new = tuple(sorted(after.keys() - before.keys()))
        gone = tuple(sorted(before.keys() - after.keys()))
        stayed = after.keys() & before.keys()
        both = {name: (old[name], known[name]) for name in stayed if name in old and name in known}
        # What nobody has looked at yet, or can look at just now, is not another file: its engine goes on.
        replaced = {name for name, (was, now) in both.items() if was.last and now.last and was.last != now.last}
        others = {name for name, (was, now) in both.items() if was[:2] != now[:2]}
        changed = tuple(sorted(others | {name for name in stayed if after[name] != before[name]}))
        if new or gone or changed:
            await self._put(after, frozenset(replaced))
        self.last_scan = Scanned(
            len(after),
            new,
            gone,
            changed,
            (*finding.troubles, *refused),
            finding.files,
            finding.read,
            time.monotonic() - began_s,
            at_us,
        )
        return self.last_scan

    def _find(self, shelf: Shelf, at_us: int) -> tuple[Finding, tuple[Entry, ...]]:
        """For a thread: look, name, keep."""
        known = self._registry.entries()
        finding = self._finder.scan(shelf.roots, _by_path(known), self._stopping.is_set)
        out_of_reach = tuple(f"{root.rstrip('/')}/" for root in finding.unreachable)
        away = [entry.found for entry in known if entry.present and entry.found.path.startswith(out_of_reach)]
        elsewhere = {place.path for one in finding.models for place in one.places} if away else set()
        # Those that have another place within reach have been found there.
        kept = [one for one in away if elsewhere.isdisjoint(place.path for place in one.places)]
        configured = {model.settings.file: name for name, model in shelf.configured.items() if model.settings.file}
        taken = _taken(shelf) | {alias for entry in known for alias in entry.aliases}
        named = naming.name_all((*finding.models, *kept), known, configured, taken)
        past = {entry.name: entry for entry in known}
        entries = [_entry(one, past.get(one.name), shelf, at_us) for one in named]
        seen, claimed = {entry.name for entry in entries}, {entry.id for entry in entries}
        for name, model in shelf.configured.items():
            if name not in seen:
                own = unseen(model, configured=True)
                before = past.get(name)
                if before is not None and before.id not in claimed:
                    own = replace(before, found=own.found, present=True, configured=True)
                entries.append(own)
        return finding, self._registry.take(entries, at_us)

    def _made(self, shelf: Shelf, entries: Collection[Entry]) -> tuple[dict[str, Model], list[Trouble]]:
        """For a thread: what each of those that were found is loaded with."""
        made: dict[str, Model] = {}
        refused = []
        makes = shelf.makes()
        here = [entry for entry in entries if entry.present]
        taken = _taken(shelf)
        others = naming.other_names(here, taken)
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
                made[entry.name] = _annotated(model, entry, (*aliases, *others.get(entry.name, ())))
            else:
                refused.append(Trouble(entry.found.path, model))
        return made, refused

    def _remembered(self, shelf: Shelf) -> tuple[dict[str, Model], dict[str, _Known]]:
        """For a thread: what was there at the last look, as the configuration wants it now; what is configured since
        has its number from now on.
        """
        entries = self._registry.entries()
        by_name = {entry.name: entry for entry in entries}
        by_path = {place.path: entry for entry in entries for place in entry.found.places}
        new: dict[int, Entry] = {}
        for name, model in shelf.configured.items():
            # Whoever writes a model down that was found already means that one.
            past = by_name.get(name) or by_path.get(model.settings.file)
            if past is None or past.name in shelf.configured.keys() - {name} or past.id in new:
                past = unseen(model, configured=True)
            if past.name != name or not past.present or not past.id:
                new[past.id or -len(new) - 1] = replace(past, name=name, present=True, configured=True)
        if new:
            here = [entry for entry in entries if entry.present and entry.id not in new]
            entries = self._registry.take([*here, *new.values()], time.time_ns() // 1000)
        # What was only configured until now may be found as well: the next look says so.
        roots = tuple(f"{root.rstrip('/')}/" for root in shelf.roots.all())
        here = [
            entry
            for entry in entries
            if entry.name in shelf.configured
            or (roots and (not entry.configured or entry.found.path.startswith(roots)))
        ]
        made, _ = self._made(shelf, here)
        return made, _known(entries, shelf, {})

    async def _take_anew(self) -> None:
        """After something was said about a model: as it is kept now, without a look at the disk."""
        entries = await asyncio.to_thread(self._registry.entries)
        self._made_of, _ = await asyncio.to_thread(self._made, self._shelf, entries)
        await self._put(self.models, frozenset())

    def _report(self, scanned: Scanned) -> None:
        outcomes: list[Outcome] = []
        if scanned.new or scanned.gone or scanned.changed:
            parts = [("found", scanned.new), ("no longer there", scanned.gone), ("changed", scanned.changed)]
            text = "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)
            fields = {
                "models": scanned.models,
                **{
                    key: len(names)
                    for key, names in zip(
                        ("new", "gone", "changed"), (scanned.new, scanned.gone, scanned.changed), strict=True
                    )
                },
            }
            outcomes.append(Notice(Kind.CATALOGUE_CHANGED, f"{_there_are(scanned.models)} now; {text}", fields=fields))
            outcomes.append(CatalogueChanged(scanned.new, scanned.gone, scanned.changed))
        told, self._told = self._told, frozenset(scanned.troubles)
        unheard = sorted(self._told - told, key=lambda trouble: trouble.path)
        if unheard:
            count = len(unheard)
            outcomes.append(
                Notice(
                    Kind.CATALOGUE_PROBLEM,
                    f"{count} {'thing' if count == 1 else 'things'} below the models' folders cannot be used as models",
                    level=Level.WARNING,
                    detail=tuple(f"{trouble.path}: {trouble.text}" for trouble in unheard[:NAMED])
                    + ((f"and {count - NAMED} more: gpudctl models scan",) if count > NAMED else ()),
                )
            )
        if outcomes:
            self._tell(tuple(outcomes))


def _known(entries: Collection[Entry], shelf: Shelf, old: Mapping[str, _Known]) -> dict[str, _Known]:
    known = {}
    for entry in entries:
        if entry.present:
            model = shelf.configured.get(entry.name)
            is_its_file = model is None or any(place.path == model.settings.file for place in entry.found.places)
            mark = hash(entry.found.stamp) if entry.found.stamp and is_its_file else 0
            before = old.get(entry.name)
            known[entry.name] = _Known(entry.id, mark, mark or (0 if before is None else before.last))
    return known


def _needs_otherwise(before: Model, after: Model) -> bool:
    """Whether more is said of it than what it is called and who goes first."""
    return before is not after and before != replace(after, aliases=before.aliases, priority=before.priority)


def _by_path(known: Collection[Entry]) -> dict[str, Found]:
    return {place.path: entry.found for entry in known for place in entry.found.places if entry.found.stamp}


def _entry(named: naming.Named, past: Entry | None, shelf: Shelf, at_us: int) -> Entry:
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


def _taken(shelf: Shelf) -> set[str]:
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


def _there_are(count: int) -> str:
    return "There is 1 model" if count == 1 else f"There are {count} models"


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
