"""The methods of org.kernelcore.GpuD about what models there are on disk. One function a method."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gpud.core.catalogue import Entry, Scanned
from gpud.core.errors import InvalidArguments, NoSuchModel
from gpud.core.naming import shown_path
from gpud.dbus.bus import clean_text
from gpud.dbus.dispatch import Handler, Reply, Request
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.gate import Gate
from gpud.dbus.limits import checked_model, checked_options
from gpud.dbus.polkit import Permission
from gpud.dbus.values import Record, number, text, truth, words
from gpud.dbus.wire import Variant
from gpud.dbus.writing import Encoded, Writer, write

_SAID = {"aliases": "as", "priority": "s", "tags": "as", "notes": "s"}

NAMES_MOST = 500
"""So many names may be asked for in one call; none asks for all."""

KEPT_S = 60.0
"""So long the list of all is kept after somebody asked for it: for 5,000 models it has 5 MB."""

TOLD_MOST = 100
"""Of what a scan has found so many of each are named; the numbers are of all."""

# polkit's own sentence for this action speaks of loading.
_SCANS = "Authentication is required to look for models on disk"


class CatalogMethods:
    """The table of handlers, and what they share."""

    def __init__(self, engine: EngineApi, *, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate
        self._kept: tuple[tuple[int, int], bytes] | None = None
        self._drop: asyncio.TimerHandle | None = None

    def table(self) -> Mapping[str, Handler]:
        return {
            "ListCatalog": self.list_catalog,
            "Scan": self.scan,
            "Annotate": self.annotate,
            "Forget": self.forget,
        }

    async def list_catalog(self, _request: Request, models: list[str]) -> Reply:
        if len(models) > NAMES_MOST:
            raise InvalidArguments(
                f"{len(models)} names are more than the limit of {NAMES_MOST}", hint="ask several times, or for all"
            )
        names = [await self._known(checked_model(name, empty="an empty list asks for all")) for name in models]
        await self._engine.keep_uses()
        if names:
            entries = await self._engine.library.entries(names, everything=True)
            return Reply(([entry_record(entry) for entry in entries],))
        return Reply(encoded=await self._everything())

    async def _everything(self) -> bytes:
        """The body for all models, which may be thousands: made in a thread, and kept while somebody asks for it."""
        library = self._engine.library
        version = library.version, library.uses_kept
        if self._kept is None or self._kept[0] != version:
            entries = await library.entries(everything=True)
            self._kept = version, await asyncio.to_thread(_encoded, entries)
        loop = asyncio.get_running_loop()
        if self._drop is not None:
            self._drop.cancel()
        self._drop = loop.call_later(KEPT_S, self._forget_kept)
        return self._kept[1]

    def _forget_kept(self) -> None:
        self._kept = self._drop = None

    async def _known(self, name: str) -> str:
        """The name of a model, or of something that is there and cannot be loaded. Raises NoSuchModel."""
        try:
            return self._engine.resolve(name)
        except NoSuchModel:
            if not await self._engine.library.entries((name,), everything=True):
                raise
            return name

    async def scan(self, request: Request) -> Reply:
        caller = await self._gate.identify(request)
        await self._gate.allow(caller, request, Permission.LOAD, details={"polkit.message": _SCANS})
        return Reply((scan_record(await self._engine.library.scan()),))

    async def annotate(self, request: Request, model: str, said: dict[str, Variant]) -> Reply:
        name = self._engine.resolve(checked_model(model, empty="name the model"))
        values: dict[str, Any] = checked_options(said, _SAID)
        for key in ("aliases", "tags"):
            if key in values:
                values[key] = tuple(values[key])
        await self._gate.manage(request)
        await self._engine.library.annotate(name, **values)
        return Reply()

    async def forget(self, request: Request, model: str) -> Reply:
        name = checked_model(model, empty="name the model")
        await self._gate.manage(request)
        await self._engine.library.forget(name)
        return Reply()


def _encoded(entries: Collection[Entry]) -> bytes:
    return write("aa{sv}", (CatalogRecords(entries),), clean_text)


class CatalogRecords(Encoded):
    """The records of all models, of which there is one at a time."""

    def __init__(self, entries: Collection[Entry]) -> None:
        self._entries = entries

    def contents(self) -> Iterable[bytes]:
        writer = Writer(clean_text)
        return (writer.record(entry_record(entry)) for entry in self._entries)


def entry_record(entry: Entry) -> Record:
    found = entry.found
    return {
        "Id": text(entry.name),
        "Number": number("t", entry.id),
        "Aliases": words(entry.aliases),
        "Path": text(shown_path(found.path)),
        "Paths": words(shown_path(place.path) for place in found.places),
        "Sources": words(dict.fromkeys(place.source.value for place in found.places)),
        "Format": text(found.format.value),
        "Architecture": text(found.architecture),
        "Quantization": text(found.quantization),
        "Parameters": text(found.parameters),
        "Purpose": text(found.purpose.value),
        "TrainedContext": number("u", found.trained_context),
        "SizeBytes": number("t", found.size_bytes),
        "EstimateBytes": number("t", entry.estimate_bytes),
        "Parts": number("u", found.parts),
        "Mmproj": text(shown_path(found.mmproj)),
        "Digest": text(found.digest),
        "Priority": text(entry.priority),
        "Tags": words(entry.tags),
        "Notes": text(entry.notes),
        "Problem": text(found.problem),
        "Configured": truth(entry.configured),
        "UsageCount": number("t", entry.usage_count),
        "FirstSeenUSec": number("t", entry.first_seen_us),
        "LastScannedUSec": number("t", entry.last_scanned_us),
        "LastUsedUSec": number("t", entry.last_used_us),
        "LoadUSec": number("t", (entry.load_s or 0.0) * 1e6),
    }


def scan_record(scanned: Scanned) -> Record:
    troubles = [[shown_path(trouble.path), trouble.text] for trouble in scanned.troubles[:TOLD_MOST]]
    return {
        "Models": number("u", scanned.models),
        "New": words(scanned.new[:TOLD_MOST]),
        "NewCount": number("u", len(scanned.new)),
        "Gone": words(scanned.gone[:TOLD_MOST]),
        "GoneCount": number("u", len(scanned.gone)),
        "Changed": words(scanned.changed[:TOLD_MOST]),
        "ChangedCount": number("u", len(scanned.changed)),
        "Problems": Variant("a(ss)", troubles),
        "ProblemCount": number("u", len(scanned.troubles)),
        "Files": number("u", scanned.files),
        "Read": number("u", scanned.read),
        "ScanUSec": number("t", scanned.seconds * 1e6),
        "AtUSec": number("t", scanned.at_us),
    }
