"""What the tray says: the headline, the tooltip and the menu, made of a snapshot. Sends nothing, and keeps nothing."""

from collections.abc import Iterable

from gpud.core.record import Record
from gpud.tray.settings import Settings
from gpud.tray.texts import Texts
from gpud.tray.view import Device, Model, Snapshot
from gpud.tray.wishes import Kind, Wish

SHORT = 10
"""So many models the menu offers to load at once; the others are one step further."""

PROBLEM_CHARACTERS = 160
"""A menu is as wide as its widest line; the whole text was in the notification."""


class Entry(Record):
    """A line of the menu. ``key`` says what it is about, and stays while its words change; no other has it.

    Without a wish and without children it only says something. ``checked`` is None where it is no check mark.
    """

    key: str
    label: str = ""
    wish: Wish | None = None
    children: tuple["Entry", ...] = ()
    checked: bool | None = None

    @property
    def is_separator(self) -> bool:
        return not self.label


class Words:
    """In one language, with one person's settings."""

    def __init__(self, texts: Texts, settings: Settings) -> None:
        self._texts = texts
        self._ = texts.gettext
        self.settings = settings

    # Sentences -------------------------------------------------------------------------------------------------------

    def headline(self, now: Snapshot) -> str:
        """The one sentence that matters most."""
        _ = self._
        if now.state == "unavailable":
            return _("The GPU does not answer")
        if now.state == "suspending":
            return _("Going to sleep")
        if now.state == "yielded":
            return self._texts.ngettext("The GPU is given away", "The GPUs are given away", _one_at_least(now.gpus))
        for state, text in (("loading", _("Loading {model}")), ("unloading", _("Unloading {model}"))):
            for model in now.models if now.state == state else ():
                if model.state == state:
                    return text.format(model=model.label)
        loaded = [model for model in now.models if model.loaded]
        if not loaded:
            return _("No model is loaded")
        active = now.model(now.active) or loaded[0]
        text = _("{model} answers") if active.state == "busy" else _("{model} is loaded")
        sentence = text.format(model=active.label)
        if others := len(loaded) - 1:
            more = self._texts.ngettext("and {count} more", "and {count} more", others).format(count=others)
            sentence = f"{sentence}, {more}"
        return sentence

    def memory(self, now: Snapshot) -> list[str]:
        """How full the GPUs are, and what of it is other programs'."""
        _ = self._
        if not now.devices or not now.total_bytes:
            return [_("How full the GPU is, is not known")]
        text = self._host_memory(now) if now.on_host else self._gpu_memory(now)
        percent = 100 * now.used_bytes // now.total_bytes
        values = {"used": self._size(now.used_bytes), "total": self._size(now.total_bytes), "percent": percent}
        lines = [text.format(**values)]
        if len(now.devices) > 1:
            lines += [self._device(device) for device in now.devices if device.measured]
        if now.measured or now.foreign_bytes:
            lines.append(_("Other programs: {size}").format(size=self._size(now.foreign_bytes)))
        return lines

    def _host_memory(self, now: Snapshot) -> str:
        _ = self._
        if not now.measured:
            return _("Memory: {total}, not measured while nothing is loaded")
        return _("Memory: {used} of {total} in use ({percent} %)")

    def _gpu_memory(self, now: Snapshot) -> str:
        if not now.measured and all(model.at_rest for model in now.models):
            # A driver that gpud has let go for want of models is not asked: that would wake the GPU.
            return self._texts.ngettext(
                "GPU memory: {total}, not measured while nothing is loaded",
                "Memory of all GPUs: {total}, not measured while nothing is loaded",
                now.gpus,
            )
        if not now.measured:
            return self._texts.ngettext(
                "GPU memory: {total}, use unknown", "Memory of all GPUs: {total}, use unknown", now.gpus
            )
        return self._texts.ngettext(
            "GPU memory: {used} of {total} in use ({percent} %)",
            "Memory of all GPUs: {used} of {total} in use ({percent} %)",
            now.gpus,
        )

    def _device(self, device: Device) -> str:
        return self._("{name}: {used} of {total} ({percent} %)").format(
            name=device.name,
            used=self._size(device.used_bytes),
            total=self._size(device.total_bytes),
            percent=device.percent,
        )

    def degraded(self, now: Snapshot) -> str:
        """What is wrong with gpud as a whole, and what to do; "" when all is well."""
        _ = self._
        known = {
            "": "",
            "cuda-unavailable": _("CUDA does not work"),
            "cpu-fallback": _("An engine runs on the processor although there is a GPU"),
            "driver-mismatch": _("The GPU's driver and its libraries are of different versions: reboot"),
            "over-budget": _("The models hold more than the budget"),
            "backend-missing": _("A configured engine cannot be found"),
            "gpu-unavailable": _("A GPU does not answer"),
            "state-not-kept": _("The state directory cannot be written"),
        }
        text = known.get(now.degraded, now.degraded)
        return _("{problem}; gpudctl doctor says more").format(problem=text) if text else ""

    def model(self, model: Model) -> str:
        """One model, with what it holds."""
        _ = self._
        states = {
            "ready": _("{model}: {size}"),
            "busy": _("{model}: {size}, answering"),
            "loading": _("{model}: loading"),
            "unloading": _("{model}: being unloaded"),
            "queued": _("{model}: waiting for {what}") if model.waits_for else _("{model}: waiting for memory"),
        }
        text = states.get(model.state, "{model}")
        return text.format(model=model.label, size=self._size(model.size_bytes), what=model.waits_for)

    def tooltip(self, now: Snapshot) -> str:
        """Below the headline. Some hosts read it as markup, some do not: it is the same in both."""
        lines = [self.degraded(now), *self.memory(now)]
        lines += [self.model(model) for model in now.models if not model.at_rest]
        return unmarked("\n".join(filter(None, lines)))

    def failure(self, wish: Wish, gpus: int) -> str:
        """The head of a notification about a wish that came to nothing, on a machine with so many GPUs."""
        _, ngettext = self._, self._texts.ngettext
        count = _one_at_least(gpus)
        texts = {
            Kind.LOAD: _("{model} could not be loaded"),
            Kind.UNLOAD: _("{model} could not be unloaded"),
            Kind.UNLOAD_ALL: _("The models could not be unloaded"),
            Kind.CANCEL: _("The wait of {model} could not be ended"),
            Kind.GIVE_AWAY: ngettext("The GPU could not be given away", "The GPUs could not be given away", count),
            Kind.TAKE_BACK: ngettext("The GPU could not be taken back", "The GPUs could not be taken back", count),
        }
        return texts.get(wish.kind, _("The settings could not be written")).format(model=wish.model)

    def _size(self, size_bytes: int) -> str:
        return self._texts.size(size_bytes)

    # The menu --------------------------------------------------------------------------------------------------------

    def menu(self, now: Snapshot, problem: str = "") -> tuple[Entry, ...]:
        """All lines. ``problem`` is what went wrong last and was not seen to yet."""
        _ = self._
        top = [Entry("headline", self.headline(now))]
        if text := self.degraded(now):
            top.append(Entry("degraded", text))
        top += [Entry(f"memory:{number}", line) for number, line in enumerate(self.memory(now))]
        if problem:
            children = (Entry("problem:clear", _("Do not show this any longer"), Wish(Kind.CLEAR)),)
            top.append(Entry("problem", cut(problem), children=children))
        groups: list[list[Entry]] = [top, self._there(now), self._to_load(now)]
        groups.append([self._give_away(now)])
        groups.append([Entry("quit", _("Quit"), Wish(Kind.QUIT))])
        lines: list[Entry] = []
        for number, group in enumerate(group for group in groups if group):
            lines += [Entry(f"separator:{number}")] if number else []
            lines += group
        return tuple(lines)

    def _there(self, now: Snapshot) -> list[Entry]:
        """The models that have memory, want it or give it back."""
        _ = self._
        jobs = dict(now.queue)
        lines = []
        for model in now.models:
            if model.loaded:
                text = _("Unload {model} ({size})").format(model=model.label, size=self._size(model.size_bytes))
                lines.append(Entry(f"unload:{model.name}", text, Wish(Kind.UNLOAD, model.name)))
            elif model.state == "loading":
                text = _("Stop loading {model}").format(model=model.label)
                lines.append(Entry(f"unload:{model.name}", text, Wish(Kind.UNLOAD, model.name)))
            elif job := jobs.get(model.name, 0):
                text = _("Stop waiting for {model}").format(model=model.label)
                lines.append(Entry(f"cancel:{model.name}", text, Wish(Kind.CANCEL, model.name, job)))
            elif not model.at_rest:
                lines.append(Entry(f"model:{model.name}", self.model(model)))
        if sum(model.loaded for model in now.models) > 1:
            lines.append(Entry("unload-all", _("Unload all models"), Wish(Kind.UNLOAD_ALL)))
        return lines

    def _to_load(self, now: Snapshot) -> list[Entry]:
        """Favourites, or what was used last; then the others, of thousands some."""
        _ = self._
        if not now.models:
            return [Entry("no-models", _("No models are configured: see gpud.yaml(5)"))]
        idle = [model for model in now.models if model.at_rest]
        favourites = [model for name in self.settings.favourites if (model := now.model(name))]
        first = [model for model in favourites if model.at_rest] if favourites else idle[:SHORT]
        rest = [model for model in idle if model not in first]
        load = self._loads(first)
        if rest:
            if load:
                load.append(Entry("load:separator"))
            by_name = self._loads(sorted(rest, key=lambda model: model.label))
            load.append(Entry("load:more", _("Others"), children=(*by_name, *self._unseen(now, "load"))))
        lines = [Entry("load", _("Load"), children=tuple(load))] if load else []
        known = sorted({model.name: model.label for model in now.models}.items(), key=lambda item: item[1])
        marks = [self._favourite(name, label) for name, label in known]
        return [*lines, Entry("favourites", _("Favourites"), children=(*marks, *self._unseen(now, "favourites")))]

    def _unseen(self, now: Snapshot, where: str) -> list[Entry]:
        """How many models there are beside those in the menu, and where to find them."""
        if not now.others:
            return []
        more = self._texts.ngettext(
            "{count} more: gpudctl models list", "{count} more: gpudctl models list", now.others
        ).format(count=now.others)
        return [Entry(f"{where}:separator:more"), Entry(f"{where}:unseen", more)]

    def _loads(self, models: Iterable[Model]) -> list[Entry]:
        return [Entry(f"load:model:{model.name}", self._offer(model), Wish(Kind.LOAD, model.name)) for model in models]

    def _offer(self, model: Model) -> str:
        """A model that could be loaded, with what it would need where that is known."""
        _ = self._
        if model.state == "failed":
            return _("{model} (failed before)").format(model=model.label)
        if not model.size_bytes:
            return model.label
        return _("{model} ({size})").format(model=model.label, size=self._size(model.size_bytes))

    def _favourite(self, name: str, label: str) -> Entry:
        return Entry(f"favourite:{name}", label, Wish(Kind.FAVOURITE, name), checked=name in self.settings.favourites)

    def _give_away(self, now: Snapshot) -> Entry:
        count = _one_at_least(now.gpus)
        if now.state == "yielded" and not now.yielded:
            # Nothing that Resume could end: it is over when the program that inhibits closes its descriptor.
            kept = self._texts.ngettext("A program keeps the GPU empty", "A program keeps the GPUs empty", count)
            return Entry("give-away", kept)
        wish = Wish(Kind.TAKE_BACK if now.yielded else Kind.GIVE_AWAY)
        text = self._texts.ngettext("Give the GPU away", "Give the GPUs away", count)
        return Entry("give-away", text, wish, checked=now.yielded)


def _one_at_least(gpus: int) -> int:
    """Without a GPU it is the machine's memory that is given away, which is one thing as well."""
    return max(1, gpus)


def unmarked(text: str) -> str:
    """The text without what markup gives a meaning to."""
    return text.translate({ord("<"): "‹", ord(">"): "›", ord("&"): "+"})


def cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= PROBLEM_CHARACTERS else line[: PROBLEM_CHARACTERS - 1] + "…"
