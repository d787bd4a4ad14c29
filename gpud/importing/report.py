"""What an import makes: a configuration, where each part of it came from, and what became of everything else.

Secrets go nowhere: neither into the configuration nor into a sentence.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from gpud.config.kinds import Wrong
from gpud.config.schema import RESERVED_NAMES, check_model_name
from gpud.config.source import Where
from gpud.core.errors import GpudError
from gpud.core.record import Record, field, replace
from gpud.importing.reading import place, plain
from gpud.importing.secrets import Secrets

Path = tuple[str, ...]
"""The keys that lead to a value of the configuration."""

MOST_ALIASES = 1000

MOST_MODELS = 2000
"""More than these are no configuration that somebody wrote."""


class Fate(StrEnum):
    """What became of a setting."""

    CARRIED = "carried"  # It is there, and means the same.
    CHANGED = "changed"  # It is there, and somebody should look at it.
    NEEDLESS = "needless"  # gpud does it by itself.
    DROPPED = "dropped"  # It is not there.


class Note(Record):
    """One setting and what became of it. ``instead`` says what to do; ``key`` is where it is now."""

    where: Where
    setting: str
    fate: Fate
    why: str = ""
    instead: str = ""
    key: str = ""

    @property
    def place(self) -> str:
        return plain(place(self.where))


class Comment(Record):
    """What the configuration says about one of its keys; where and what it was before, where it was something."""

    text: str
    where: Where | None = None
    setting: str = ""


class Given(Record):
    """What an importer may know beside the text: where relative paths start, and what was said on the command line.

    ``home`` is what ``~/`` stands for. ``variables`` are those that ``${env.NAME}`` and ``${NAME}`` may name.
    ``maps`` turns paths inside of a container into paths of this machine, the longest first.
    """

    file: str
    directory: str
    home: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    maps: tuple[tuple[str, str], ...] = ()


class Report(Record):
    """The outcome: a configuration that gpud takes, as text and as data, and the notes in the order of the file."""

    kind: str
    file: str
    text: str
    config: Mapping[str, Any]
    notes: tuple[Note, ...]

    def of(self, fate: Fate) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.fate is fate)


class Draft:
    """A configuration that is being put together. What it costs grows with what is put, and no faster."""

    def __init__(self, kind: str, given: Given) -> None:
        self.kind = kind
        self.given = given
        self.config: dict[str, Any] = {}
        self.comments: dict[Path, Comment] = {}
        self.secrets = Secrets(given.file)
        self._notes: dict[int, Note] = {}
        self._numbers: dict[Path, list[int]] = {}
        self._next = 0
        self._models: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._settings: dict[Path, str] = {}
        self._aliases: dict[str, str] = {}

    @property
    def notes(self) -> list[Note]:
        return list(self._notes.values())

    def _note(self, note: Note, path: Path = ()) -> None:
        self._notes[self._next] = note
        if path:
            self._numbers.setdefault(path, []).append(self._next)
        self._next += 1

    def _forget_notes(self, path: Path) -> None:
        for number in self._numbers.pop(path, ()):
            self._notes.pop(number, None)

    # What was found -------------------------------------------------------------------------------------------------

    def put(
        self,
        path: Path,
        value: object,
        where: Where,
        setting: str,
        *,
        why: str = "",
        instead: str = "",
        changed: bool = False,
    ) -> bool:
        """Set a key; what was there is replaced. False, and a note, where the value holds a secret."""
        key = ".".join(path)
        if value in self.secrets:
            self.leave(where, setting, "it holds a secret, and secrets are never copied", f"write {key} yourself")
            return False
        earlier = self.comments.get(path)
        if earlier and earlier.where and path[-1] != "aliases":
            self._forget_notes(path)
            if self.get(path) == value:
                self.spare(earlier.where, earlier.setting, f"{setting} says the same")
            else:
                self.leave(earlier.where, earlier.setting, f"{setting} sets {key}, too, and counts")
        fate = Fate.CHANGED if changed else Fate.CARRIED
        redact = self.secrets.redact
        note = Note(where, redact(setting), fate, redact(why), redact(instead), key)
        self._note(note, path)
        self._set(path, value)
        line = f", line {where.line}" if where.line else ""
        model = self._settings.get(path[:2], "")
        short = setting.replace(f"{model}.", "") if model else setting
        said = f"{short}{line}{f': {why}' if why else ''}{f'; {instead}' if instead and changed else ''}"
        self.comments[path] = Comment(redact(said), where, note.setting)
        return True

    def assume(self, path: Path, value: object, why: str) -> None:
        """Set a key that nobody asked for in so many words, unless it is set."""
        if self.get(path) is None:
            self._set(path, value)
            self.comments[path] = Comment(self.secrets.redact(why))

    def leave(self, where: Where, setting: str, why: str, instead: str = "") -> None:
        """Say that something is not carried over."""
        redact = self.secrets.redact
        self._note(Note(where, redact(setting), Fate.DROPPED, redact(why), redact(instead)))

    def spare(self, where: Where, setting: str, why: str) -> None:
        """Say that gpud needs no such setting."""
        self._note(Note(where, self.secrets.redact(setting), Fate.NEEDLESS, self.secrets.redact(why)))

    def get(self, path: Path) -> Any:
        found: Any = self.config
        for key in path:
            if not isinstance(found, dict) or key not in found:
                return None
            found = found[key]
        return found

    def discard(self, path: Path) -> None:
        """Take a key out as if it had never been there: notes that say where something is would be lies. Maps that
        become empty go too."""
        for below in [path, *self._below(path, self.get(path))]:
            self._forget_notes(below)
            self.comments.pop(below, None)
        *above, last = path
        found = self.get(tuple(above)) if above else self.config
        if isinstance(found, dict):
            found.pop(last, None)
            if not found and above:
                self.discard(tuple(above))

    def _below(self, path: Path, value: object) -> Iterator[Path]:
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield (*path, key)
            yield from self._below((*path, key), inner)

    def origin(self, path: Path) -> tuple[Where, str]:
        """Where a key came from, and what it was there."""
        comment = self.comments.get(path)
        if comment is None or comment.where is None:
            return Where(self.given.file, 0), ".".join(path)
        return comment.where, comment.setting

    def _set(self, path: Path, value: object) -> None:
        found = self.config
        for key in path[:-1]:
            found = found.setdefault(key, {})
        found[path[-1]] = value

    # Models ---------------------------------------------------------------------------------------------------------

    def model(self, name: str, where: Where, setting: str) -> Path:
        """Where a model of this name is; each name is given once. A name that gpud does not allow is mended."""
        if len(self._counts) >= MOST_MODELS:
            text = f"cannot import {self.given.file}: it has more than {MOST_MODELS:,} models"
            raise GpudError(text, hint="import it in parts, and put them into gpud.d beside gpud.yaml")
        path = ("models", self._free_name(name))
        self._models.setdefault(name, path[1])
        self._settings[path] = setting
        self.config.setdefault("models", {})[path[1]] = {}
        said = f"{setting}, line {where.line}" if where.line else setting
        if path[1] != name:
            why = f'its name is "{path[1]}" now: {_why_not(name)}'
            said = f"{said}: {why}"
            instead = "have its clients ask for that"
            redact = self.secrets.redact
            self._note(Note(where, redact(setting), Fate.CHANGED, redact(why), instead, ".".join(path)), path)
        self.comments[path] = Comment(self.secrets.redact(said), where, self.secrets.redact(setting))
        return path

    def _free_name(self, name: str) -> str:
        mended = re.sub(r"[^A-Za-z0-9._:/@+-]+", "-", name).strip("-")[:110]
        mended = re.sub(r"^[^A-Za-z0-9]+", "", mended) or "model"
        if mended in RESERVED_NAMES:
            mended += "-model"
        free = mended
        while free in self._counts:
            self._counts[mended] += 1
            free = f"{mended}-{self._counts[mended]}"
        self._counts[free] = 1
        return free

    def model_called(self, name: str) -> Path | None:
        """The model that was given under this name, or has it as an alias."""
        owner = self._models.get(name) or self._aliases.get(name)
        path = ("models", owner or "")
        return path if owner and self.get(path) is not None else None

    def alias(self, path: Path, name: str, where: Where, setting: str) -> None:
        """Give a model one more name. Each leads to one model, so that a second is not carried over."""
        owner = path[1]
        if name == owner or self._aliases.get(name) == owner:
            self.spare(where, setting, f'"{name}" is a name of that model already')
            return
        known = self.get((*path, "aliases")) or []
        try:
            check_model_name(name)
            if len(known) >= MOST_ALIASES:
                raise Wrong(f"would be one of more than {MOST_ALIASES} of that model")
        except Wrong as wrong:
            self.leave(where, f"{setting} {shown(name)}", f"it {wrong}", f"add another to {'.'.join(path)}.aliases")
            return
        other = name if name in self._counts else self._aliases.get(name)
        if other is not None:
            self.leave(where, f'{setting} "{name}"', f'the model "{other}" has that name', "choose another")
            return
        self._aliases[name] = owner
        self.put((*path, "aliases"), [*known, name], where, setting)

    def forget_aliases_of_names(self) -> None:
        """An alias that a model got before another model of that name came is given up."""
        for name in [name for name in self._aliases if name in self._counts]:
            path = ("models", self._aliases.pop(name), "aliases")
            left = [one for one in self.get(path) or [] if one != name]
            where = self.origin(path)[0]
            if left:
                self._set(path, left)
            else:
                self.discard(path)
            self.leave(where, f'{".".join(path)}: "{name}"', "a model has that name", "choose another")

    def forget_secrets(self) -> None:
        """What was put or said before it was known to be secret goes too."""
        for path in list(self._below((), self.config)):
            value = self.get(path)
            if not isinstance(value, dict) and value in self.secrets:
                where, setting = self.origin(path)
                self.discard(path)
                self.leave(where, setting, "it holds a secret, and secrets are never copied", "write it yourself")
        redact = self.secrets.redact
        for number, note in self._notes.items():
            self._notes[number] = replace(
                note, setting=redact(note.setting), why=redact(note.why), instead=redact(note.instead)
            )
        for path, comment in self.comments.items():
            self.comments[path] = replace(comment, text=redact(comment.text), setting=redact(comment.setting))


def _why_not(name: str) -> str:
    try:
        check_model_name(name)
    except Wrong as wrong:
        return f"the old one {wrong}"
    return "another model has the old one"


def shown(text: str) -> str:
    """A value as a note quotes it: short."""
    return f'"{text if len(text) <= 60 else text[:57] + "…"}"'
