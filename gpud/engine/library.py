"""What models there are: those that are configured and those that were found on disk, as one list of names.

Owns when is looked, what is kept of it, and who is told. Looking and keeping are done in threads, by the finder and the
registry; what a found model is loaded with comes from the configuration. Entries are not held in memory: there may be
thousands of them, and they are asked for seldom.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

from gpud.core.catalogue import Entry, Found, Scanned, Trouble
from gpud.core.counts import plural
from gpud.core.errors import Canceled, InvalidOption, NoSuchModel
from gpud.core.events import CatalogueChanged, Kind, Level, Notice, Outcome
from gpud.core.facts import Model
from gpud.core.ports import Aside, Finder, Registry
from gpud.core.record import replace
from gpud.core.stock import Stock
from gpud.engine import saying
from gpud.engine.glimpse import glimpse, renewed
from gpud.engine.guessing import closest
from gpud.engine.needs import Needs, settings_mark
from gpud.engine.shelf import Held, Look, Past, Shelf, look_at_everything, remembered, taken_anew, unseen

log = logging.getLogger(__name__)

NOT_THERE = "it is not there; if it is on a disk of its own, mount that"

NAMED = 10
"""So many names stand in one message; of the others there is the number."""


class Library:
    """For the event loop's thread. ``put`` hands over all models; ``size`` says what one would need."""

    def __init__(self, finder: Finder, registry: Registry, aside: Aside | None = None) -> None:
        self._finder = finder
        self._registry = registry
        self._aside = aside
        self._shelf = Shelf()
        self._held = Held()
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
        self._counted_then: dict[str, int] = {}
        self._begun = False
        self._everything = True
        """Whether the next look has to be at everything, whatever the kernel has told."""
        self._changes = self._sized = 0
        self._uses_kept = 0
        self.last_scan: Scanned | None = None

    def serve(
        self,
        put: Callable[[Mapping[str, Model], frozenset[str]], Awaitable[None]],
        tell: Callable[[tuple[Outcome, ...]], None],
        size: Callable[[Model], Awaitable[int | None]],
    ) -> None:
        """Whom it works for; called once, before anything else."""
        self._put, self._tell = put, tell
        self._needs = Needs(self._registry, lambda: self.models, self._needs_unknown, size, self._need_told)

    @property
    def models(self) -> Stock:
        """All that can be asked for now."""
        return self._held.models

    @property
    def version(self) -> int:
        """Another one whenever something else may be known of a model but how it was used."""
        return self._changes + self._sized

    @property
    def uses_kept(self) -> int:
        """Another one whenever it was kept that models were used."""
        return self._uses_kept

    def number_of(self, name: str) -> int:
        """The number that the registry has for a model, for ever; 0: it has none yet."""
        known = self._held.known.get(name)
        return 0 if known is None else known.number

    def need_of(self, name: str) -> int | None:
        """What a model would need as it is configured, as far as that was calculated."""
        known = self._held.known.get(name)
        return None if known is None else known.need_bytes

    def past_of(self, name: str) -> Past | None:
        """How it was used before gpud started; None: never. What was kept since is told by whoever counts."""
        past = self._held.past.get(name)
        return None if past is None else past._replace(uses=max(0, past.uses - self._counted_then.get(name, 0)))

    def numbered(self, number: int) -> str | None:
        """The model with this number, where it is there."""
        names = (name for name, known in self._held.known.items() if known.number == number)
        return next((name for name in names if name in self.models), None)

    async def configure(self, shelf: Shelf) -> None:
        """From now on by this configuration, those that were found before, too. Whoever calls it takes the models."""
        async with self._one_at_a_time:
            held = await asyncio.to_thread(remembered, self._registry, shelf, self._held)
            self._shelf = shelf
            self._take(held)
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
            self._everything = True
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
            replace(entry, configured=entry.name in self._shelf.configured, found=self._as_seen(entry.found))
            for entry in known
            if entry.name in here or (everything and entry.present)
        ]
        # What was configured since the last look is not in the registry yet.
        there = {entry.name for entry in listed}
        missing = {name for name in (here if names is None else names) if name in here and name not in there}
        listed += [unseen(here[name], configured=name in self._shelf.configured) for name in sorted(missing)]
        return tuple(listed)

    async def entry(self, name: str) -> Entry:
        """``name`` is one that the engine has resolved."""
        found = await self.entries((name,))
        if not found:
            raise self._no_such(name)
        return found[0]

    def _as_seen(self, found: Found) -> Found:
        """With the reason why nobody can look at it now, if there is one."""
        away = () if self.last_scan is None else self.last_scan.unreachable
        why = next((one for one in away if is_below(found.path, one.path)), None)
        return found if why is None else replace(found, problem=f"cannot be reached now: {why.path}: {why.text}")

    def _no_such(self, name: str) -> NoSuchModel:
        near = closest(name, self.models)
        return NoSuchModel(
            f'there is no model "{name}"', hint=f'did you mean "{near}"?' if near else "see gpudctl models list"
        )

    # What can be wished ----------------------------------------------------------------------------------------------

    async def scan(self) -> Scanned:
        """Look at everything. One that is under way may have passed what has changed since: another follows it."""
        self._everything = True
        return await asyncio.shield(self._next_look())

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
                aliases=entry.aliases if aliases is None else saying.aliases(name, aliases, self.models),
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
            self._changes += 1

    async def count(self, uses: Mapping[str, tuple[int, float, float | None]], now_s: float) -> None:
        """Keep how often models were used. ``uses`` are counts since gpud started, and times on the loop's clock. One
        that has gone is not among them, and is counted from nothing when it comes back.
        """
        self._counted = {name: count for name, count in self._counted.items() if name in uses}
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
        self._uses_kept += 1

    # Looking ---------------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something on disk may be otherwise. Whoever tells of it does not wait for what is found."""
        self._next_look()

    def _next_look(self) -> asyncio.Task[Scanned]:
        """The first look that begins from now on; all who want one meanwhile share it."""
        if self._running is None:
            self._running = asyncio.create_task(self._scan())
            return self._running
        if self._following is None:
            self._following = asyncio.create_task(self._scan_after(self._running))
        return self._following

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
        self._everything = True
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
        everything, self._everything = self._everything, False
        try:
            scanned = None if everything or self.last_scan is None else await self._glimpse(self.last_scan)
            self.last_scan = scanned or await self._look_at_everything()
        except BaseException:
            self._everything = True
            raise
        return self.last_scan

    async def _glimpse(self, last: Scanned) -> Scanned | None:
        """Only at the files that the kernel has named, which takes no longer where there are thousands of others."""
        began_s, at_us = time.monotonic(), time.time_ns() // 1000
        seen = await asyncio.to_thread(
            glimpse, self._finder, self._registry, self._shelf, self.models, last.troubles, at_us
        )
        if seen is None:
            return None
        touched = {entry.name for entry in seen.entries} | set(seen.gone)
        told = await self._become(renewed(seen, self._held, self._shelf), touched)
        return replace(
            told,
            unreachable=last.unreachable,
            troubles=(*last.troubles, *seen.refused),
            files=seen.finding.files,
            read=seen.finding.read,
            seconds=time.monotonic() - began_s,
            at_us=at_us,
        )

    async def _look_at_everything(self) -> Scanned:
        began_s, at_us = time.monotonic(), time.time_ns() // 1000
        look = Look(self._finder, self._shelf, at_us, self._held)
        held, finding, refused = await asyncio.to_thread(
            look_at_everything, look, self._registry, self._stopping.is_set, self._aside
        )
        told = await self._become(held)
        away = tuple(Trouble(path, _why_away(path, finding.troubles)) for path in finding.unreachable)
        return replace(
            told,
            changed=tuple(sorted({*told.changed, *self._seen_otherwise(away)} - {*told.new, *told.gone})),
            unreachable=away,
            troubles=(*finding.troubles, *refused),
            files=finding.files,
            read=finding.read,
            seconds=time.monotonic() - began_s,
            at_us=at_us,
        )

    def _seen_otherwise(self, away: Collection[Trouble]) -> Iterator[str]:
        """Those that can be reached again, or no longer, or cannot be for another reason."""
        differs = {one.path for one in set(away) ^ set(() if self.last_scan is None else self.last_scan.unreachable)}
        for name, model in self.models.items() if differs else ():
            if any(is_below(model.settings.file, path) for path in differs):
                yield name

    async def _become(self, held: Held, touched: Collection[str] | None = None) -> Scanned:
        """These are there now; returns what is otherwise than before. ``touched``: all others are as they were."""
        before = self._take(held)
        was, now = before.models, held.models
        if held is before or (touched is None and was is now and before.known == held.known):
            return Scanned(len(now))
        new = tuple(sorted(now.keys() - was.keys()))
        gone = tuple(sorted(was.keys() - now.keys()))
        stayed = now.keys() & was.keys() if touched is None else now.keys() & was.keys() & set(touched)
        both = {n: (before.known[n], held.known[n]) for n in stayed if n in before.known and n in held.known}
        # What nobody has looked at yet, or can look at just now, is not another file: its engine goes on.
        replaced = {name for name, (old, one) in both.items() if old.last and one.last and old.last != one.last}
        others = {name for name, (old, one) in both.items() if old[:2] != one[:2]}
        changed = tuple(sorted(others | {name for name in stayed if not now.same(was, name)}))
        if new or gone or changed:
            await self._put(now, frozenset(replaced))
        return Scanned(len(now), new, gone, changed)

    async def _take_anew(self) -> None:
        """After something was said about a model: as it is kept now, without a look at the disk."""
        self._take(await asyncio.to_thread(taken_anew, self._registry, self._shelf, self._held))
        await self._put(self.models, frozenset())

    def _take(self, held: Held) -> Held:
        """This is what is held from now on; returns what was. What was calculated meanwhile is in the old one alone."""
        before, self._held = self._held, held
        if held.past is not before.past:
            # Of what it says so many uses are those of this gpud.
            self._counted_then = dict(self._counted)
        if held is not before:
            held.keep_needs(before)
        self._changes += 1
        return before

    # What they would need --------------------------------------------------------------------------------------------

    def _needs_unknown(self) -> dict[str, int]:
        """Of those that are there: whose need was not calculated, or was of other settings. By their numbers."""
        models = self.models
        marks: dict[int, str] = {}
        unknown = {}
        for name in models:
            known = self._held.known.get(name)
            if known is None or not known.number:
                continue
            pattern = models.pattern(name)
            mark = marks.get(id(pattern)) or marks.setdefault(id(pattern), settings_mark(pattern))
            if known.need_bytes is None or known.need_of != mark:
                unknown[name] = known.number
        return unknown

    def _need_told(self, name: str, need_bytes: int, of: str) -> None:
        known = self._held.known.get(name)
        if known is not None:
            self._held.known[name] = known._replace(need_bytes=need_bytes, need_of=of)
            self._sized += 1

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
                    f"{plural(count, 'thing')} below the models' folders cannot be used as models",
                    level=Level.WARNING,
                    detail=tuple(f"{trouble.path}: {trouble.text}" for trouble in unheard[:NAMED])
                    + ((f"and {count - NAMED} more: gpudctl models scan",) if count > NAMED else ()),
                )
            )
        if outcomes:
            self._tell(tuple(outcomes))


def _why_away(path: str, troubles: Collection[Trouble]) -> str:
    """Of a store one file in it may be the reason."""
    own = next((one.text for one in troubles if one.path == path), "")
    inner = next((f"{one.path}: {one.text}" for one in troubles if is_below(one.path, path)), "")
    return own or inner or NOT_THERE


def is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _there_are(count: int) -> str:
    return "There is 1 model" if count == 1 else f"There are {count} models"


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
