"""``gpudctl budget``: whether a model fits, what would make it fit, and what would have to go for it. Loads nothing."""

import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, whole
from gpud.cli.exits import DONE, REFUSED, NotRunning
from gpud.cli.output import Output, size
from gpud.cli.status import SOURCES, place_name
from gpud.core.counts import plural
from gpud.core.record import Record, replace

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.core.quote import Estimate

DESCRIPTION = """\
Check whether a model fits, without loading it: show what it needs, the budget
and the available memory of each device, and what would be unloaded for it. If
it does not fit, show the reduced settings that its configuration allows, and
the most layers on the GPU and the largest context that would fit. MODEL is a
configured model with its own settings; FILE is any GGUF file, known to gpud or
not. The exit status is 4 if the model could not be loaded."""

EXAMPLES = (
    "gpudctl budget qwen3-8b",
    "gpudctl budget qwen3-8b --ctx 32768",
    "gpudctl budget ~/models/big-q4_k_m.gguf --ctx 16384 --layers 20",
)

LEAST_CONTEXT = 1024
"""With less, a model is of no use, and nobody is told to try."""


class Way(Record):
    """One way to load a model. ``shares`` has what each device would hold: "" is any one GPU."""

    shares: Mapping[str, int]
    source: str = "formula"
    context: int | None = None
    layers: int | None = None
    reduced: str = ""

    @property
    def on_host(self) -> bool:
        """Whether it has no part on a GPU."""
        return all(device == "host" for device in self.shares)

    @property
    def need_bytes(self) -> int:
        """On GPUs, or all of it where it has no part there."""
        return sum(share for device, share in self.shares.items() if self.on_host or device != "host")

    @property
    def host_bytes(self) -> int:
        """Of the machine's memory, beside what is on GPUs."""
        return 0 if self.on_host else self.shares.get("host", 0)

    @property
    def words(self) -> str:
        """In what it differs from what was asked for."""
        gpus = sum(device != "host" for device in self.shares)
        return " and ".join(filter(None, (self.reduced, f"its layers split over {gpus} GPUs" if gpus > 1 else "")))


class Wish(Record):
    """What was asked about: the way that was asked for, and others that need less, the best of each kind first.

    ``allowed`` are those that the model's configuration lets gpud take by itself.
    """

    name: str
    way: Way
    with_fewer_layers: Iterable[Way]
    with_less_context: Iterable[Way]
    allowed: tuple[Way, ...] = ()


class Room(Record):
    """One device with the scheduler's account of it; None is not known."""

    uuid: str
    name: str
    budget_bytes: int | None
    available_bytes: int | None
    asleep: bool = False


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL|FILE", help="name of a configured model, or a GGUF file")
    parser.add_argument("--ctx", metavar="N", type=whole(1, (1 << 32) - 1), help="tokens of context")
    parser.add_argument("--layers", metavar="N", type=whole(0, 1 << 20), help="layers on the GPU")


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli import client

    if not is_file(arguments.model):
        return client.run(lambda gpud: of_model(gpud, arguments, output), arguments.bus)
    try:
        return client.run(lambda gpud: of_file(gpud, arguments, output), arguments.bus)
    except NotRunning as problem:
        answer = Answer(file_wish(arguments, _visible_gpus()), (), None)
        answer.show(output)
        output.note(f"gpudctl: {problem.message}: the budget and the models to unload are unknown")
        return DONE


def is_file(text: str) -> bool:
    """Whether it means a file: names of models may hold slashes as well."""
    if text.endswith(".gguf") or text.startswith(("/", "./", "../", "~/")):
        return True
    return "/" in text and os.path.isfile(text)  # noqa: PTH113 - Path.is_file() raises for what is too long.


async def of_model(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    from gpud.cli.library import Variant

    record, status = await gpud.about(arguments.model)
    options = {}
    if arguments.ctx is not None:
        options["context-size"] = Variant("u", arguments.ctx)
    if arguments.layers is not None:
        options["layers"] = Variant("u", arguments.layers)
    (quote,) = await gpud.call("Quote", "sa{sv}", record["Id"], options)
    first, *rest = [offered(offer) for offer in quote["Offers"]]
    others = [*rest, *(offered(offer) for offer in quote["Less"])]
    way = replace(
        first,
        context=first.context or arguments.ctx or record["ContextSize"] or None,
        layers=first.layers if arguments.layers is None else arguments.layers,
    )
    fewer_layers = [one for one in others if one.layers is not None]
    less_context = [one for one in others if one.layers is None and one.context is not None]
    wish = Wish(record["Id"], way, fewer_layers, less_context, tuple(rest))
    return await answer(gpud, wish, status, output)


def offered(offer: dict[str, Any]) -> Way:
    """A way as the daemon tells it."""
    return Way(
        offer["Shares"],
        offer["Source"],
        offer.get("Context"),
        offer.get("Layers"),
        offer["Reduced"],
    )


async def of_file(gpud: "Gpud", arguments: Namespace, output: Output) -> int:
    import asyncio

    status = await gpud.overview()
    gpus = sum(gpu["Uuid"] != "host" and not gpu["Health"] for gpu in status["Gpus"])
    wish = await asyncio.to_thread(file_wish, arguments, gpus)
    return await answer(gpud, wish, status, output)


async def answer(gpud: "Gpud", wish: Wish, status: dict[str, Any], output: Output) -> int:
    from gpud.cli.library import Variant

    rooms = tuple(
        Room(gpu["Uuid"], gpu["Name"], gpu.get("Budget"), gpu.get("Available"), gpu["Asleep"])
        for gpu in status["Gpus"]
        if (gpu["Uuid"] == "host") == wish.way.on_host
    )
    options = {"gpu": Variant("s", "host")} if wish.way.on_host else {}
    (considered,) = await gpud.call("Consider", "ta{sv}", wish.way.need_bytes, options)
    if considered["Verdict"] == "refused" and any(room.asleep for room in rooms):
        # It is not woken for a question: nobody knows what is free of it, and the budget alone decides here.
        considered = None
    found = Answer(wish, rooms, considered, status)
    found.show(output)
    return REFUSED if found.fits is False and found.allowed is None else DONE


# Files ---------------------------------------------------------------------------------------------------------------


def _visible_gpus() -> int:
    import os

    from gpud.cli.estimate import visible_gpus

    return visible_gpus(os.environ)


def file_wish(arguments: Namespace, gpus: int) -> Wish:
    """What a file would need, as the formula says it: on one GPU where there is one, for that is tried first."""
    from gpud.backends.llama_flags import DEFAULT_CONTEXT
    from gpud.cli.estimate import calculate, plan_for, read_files
    from gpud.core.estimate import UnknownArchitecture

    context = arguments.ctx or DEFAULT_CONTEXT
    path = str(Path(arguments.model).expanduser())
    layers = () if arguments.layers is None else ("-ngl", str(arguments.layers))
    on_gpu = min(1, gpus) if arguments.layers != 0 else 0
    plan = plan_for(path, ("-c", str(context), *layers), on_gpu, {})
    files = read_files(plan)

    def way(context: int, layers: int | None, reduced: str = "") -> Way:
        chosen = replace(plan, context=context)
        if layers is not None:
            chosen = replace(chosen, layers=layers, gpus=on_gpu if layers else 0)
        return counted(calculate(files, chosen), layers, reduced)

    def fewer_layers() -> Iterator[Way]:
        for layers in range(first.layers - 1, -1, -1) if first.layers else ():
            yield way(context, layers, f"{plural(layers, 'layer')} on the GPU")

    def less_context() -> Iterator[Way]:
        smaller = first.context or 0
        while smaller > LEAST_CONTEXT:
            smaller = max(LEAST_CONTEXT, smaller // 2)
            yield replace(way(smaller, arguments.layers), layers=None, reduced=f"a context of {smaller}")

    try:
        first = way(context, arguments.layers)
    except UnknownArchitecture as problem:
        problem.hint = f'"gpudctl estimate {arguments.model}" asks llama-server, which may know it'
        raise
    return Wish(Path(path).name, first, fewer_layers(), less_context())


def counted(estimate: "Estimate", layers: int | None, reduced: str) -> Way:
    """What gpud would reserve for this on a machine on which nothing was measured yet."""
    from gpud.core.learning import beyond

    on_gpu = [part.total_bytes for part in estimate.parts if part.gpu is not None]
    host = sum(part.total_bytes for part in estimate.parts if part.gpu is None)
    rest, margin = beyond(host, None, on_host=True)
    if not on_gpu:
        return Way({"host": host + rest + margin}, str(estimate.source), estimate.context, layers, reduced)
    own = sum(on_gpu)
    held = own + sum(beyond(own, None, on_host=False))
    shown = estimate.layers if layers is None else layers
    return Way({"": held, "host": host + rest}, str(estimate.source), estimate.context, shown, reduced)


# The answer ----------------------------------------------------------------------------------------------------------


class Answer:
    """Puts together what was asked for, what there is, and what the scheduler would do. None is not known."""

    def __init__(
        self,
        wish: Wish,
        rooms: tuple[Room, ...],
        considered: dict[str, Any] | None,
        status: dict[str, Any] | None = None,
    ) -> None:
        self.wish = wish
        self.rooms = rooms
        self.considered = considered
        self._status = status or {"Gpus": []}
        budgets = [room for room in rooms if room.budget_bytes is not None]
        chosen = considered["Device"] if considered else ""
        self.room = next((room for room in rooms if room.uuid == chosen), None) or max(
            budgets, key=lambda room: room.budget_bytes or 0, default=None
        )
        self._host_budget_bytes: int | None = next(
            (gpu.get("Budget") for gpu in self._status["Gpus"] if gpu["Uuid"] == "host"), None
        )
        self.fits: bool | None = self._would_fit(wish.way) if rooms else None
        self.allowed: Way | None = (
            next((way for way in wish.allowed if self._would_fit(way)), None) if not self.fits else None
        )
        self.suggestions = self._suggestions() if self.fits is False else {}

    def _would_fit(self, way: Way) -> bool:
        """Into the budget, if everything that may go went."""
        if way is self.wish.way and self.considered is not None and self.considered["Verdict"] == "refused":
            return False
        for device, share in way.shares.items():
            if device == "":
                budget = self.room.budget_bytes if self.room else 0
            elif device == "host":
                budget = self._host_budget_bytes
            else:
                budget = next((room.budget_bytes for room in self.rooms if room.uuid == device), 0)
            if budget is not None and share > budget:
                return False
        return True

    def _suggestions(self) -> dict[str, int]:
        """The most layers, and the most context, with which it would fit."""
        layers = next((way.layers for way in self.wish.with_fewer_layers if self._would_fit(way)), None)
        context = next((way.context for way in self.wish.with_less_context if self._would_fit(way)), None)
        return {key: value for key, value in (("layers", layers), ("context", context)) if value is not None}

    def as_data(self) -> dict[str, Any]:
        way = self.wish.way
        return {
            "model": self.wish.name,
            "need_bytes": way.need_bytes,
            "host_bytes": way.host_bytes,
            "source": way.source,
            "context": way.context,
            "layers": way.layers,
            "device": self.room.uuid if self.room else None,
            "budget_bytes": self.room.budget_bytes if self.room else None,
            "available_bytes": self.room.available_bytes if self.room else None,
            "fits": self.fits,
            "reduced": self.allowed.words if self.allowed else None,
            "verdict": self.considered["Verdict"] if self.considered else None,
            "victims": list(self.considered["Victims"]) if self.considered else [],
            "message": self.considered["Message"] if self.considered else "",
            "devices": [
                {
                    "uuid": room.uuid,
                    "name": room.name,
                    "budget_bytes": room.budget_bytes,
                    "available_bytes": room.available_bytes,
                }
                for room in self.rooms
            ],
            "suggestions": {key: self.suggestions.get(key) for key in ("layers", "context")},
        }

    def show(self, output: Output) -> None:
        output.result("\n".join(self._lines(output)), self.as_data())

    def _lines(self, output: Output) -> list[str]:
        way = self.wish.way
        settings = [f"a context of {way.context}" if way.context else ""]
        settings.append(
            f"{plural(way.layers, 'layer')} on the GPU" if way.layers is not None and not way.on_host else ""
        )
        given = " and ".join(filter(None, settings))
        where = "of the machine's memory" if way.on_host else "on a GPU"
        beside = f", and {size(way.host_bytes)} of the machine's memory" if way.host_bytes else ""
        source = SOURCES.get(way.source, way.source)
        name = f"{self.wish.name}, with {given}" if given else self.wish.name
        lines = [f"{name}: needs {size(way.need_bytes)} {where}{beside}" + (f", {source}" if source else "")]
        for room in self.rooms:
            name = (
                "host memory" if room.uuid == "host" else f"{place_name(room.uuid, self._status['Gpus'])} ({room.name})"
            )
            budget = "unknown" if room.budget_bytes is None else size(room.budget_bytes)
            free = "" if room.available_bytes is None else f", {size(room.available_bytes)} available"
            free = ", asleep" if room.asleep else free
            lines.append(f"  {name}: budget {budget}{free}")
        if self.fits is not None:
            lines.append(self._verdict(output))
        if self.fits is False:
            lines += self._advice()
        return lines

    def _verdict(self, output: Output) -> str:
        asked = self.considered
        if not self.fits:
            why = asked["Message"] if asked is not None and asked["Verdict"] == "refused" else ""
            short = self._host_budget_bytes
            if not why and short is not None and self.wish.way.host_bytes > short:
                why = f"its part in the machine's memory is above the budget there, {size(short)}"
            return output.paint("does not fit", "red") + (f": {why}" if why else "")
        if asked is None:
            return output.paint("fits", "green") + ", unless other programs hold the GPU, which is asleep"
        if asked["Verdict"] == "fits":
            return output.paint("fits now", "green")
        if asked["Victims"]:
            names = ", ".join(f'"{name}"' for name in asked["Victims"])
            return (
                output.paint("fits", "yellow")
                + f" when {names} {'is' if len(asked['Victims']) == 1 else 'are'} unloaded"
            )
        return output.paint("fits, but has to wait", "yellow") + f": {asked['Message']}"

    def _advice(self) -> list[str]:
        options = {"layers": "--layers", "context": "--ctx"}
        words = [f"{options[key]} {self.suggestions[key]}" for key in ("layers", "context") if key in self.suggestions]
        lines = [f"it would fit with {' or '.join(words)}"] if words else []
        if self.allowed is not None:
            lines.insert(0, f"gpud would load it with {self.allowed.words}, as its configuration allows")
        return lines or [
            "it would not fit with fewer layers or less context either: take a smaller model or quantization"
        ]
