"""What an import makes: a configuration, where each part of it came from, and what became of everything else.

Owns the rule that secrets go nowhere: neither into the configuration nor into a sentence.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from gpud.config.kinds import Wrong
from gpud.config.schema import RESERVED_NAMES, check_model_name
from gpud.config.source import Where
from gpud.importing.reading import place, plain

Path = tuple[str, ...]
"""The keys that lead to a value of the configuration."""

SHORTEST_SECRET = 6


class Fate(StrEnum):
    """What became of a setting."""

    CARRIED = "carried"  # It is there, and means the same.
    CHANGED = "changed"  # It is there, and somebody should look at it.
    NEEDLESS = "needless"  # gpud does it by itself.
    DROPPED = "dropped"  # It is not there.


@dataclass(frozen=True, slots=True)
class Note:
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


@dataclass(frozen=True, slots=True)
class Comment:
    """What the configuration says about one of its keys; where and what it was before, where it was something."""

    text: str
    where: Where | None = None
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """What an importer may know beside the text: where relative paths start, and what was said on the command line.

    ``home`` is what ``~/`` stands for. ``variables`` are those that ``${env.NAME}`` and ``${NAME}`` may name.
    ``maps`` turns paths inside of a container into paths of this machine, the longest first.
    """

    file: str
    directory: str
    home: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    maps: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome: a configuration that gpud takes, as text and as data, and the notes in the order of the file."""

    kind: str
    file: str
    text: str
    config: Mapping[str, Any]
    notes: tuple[Note, ...]

    def of(self, fate: Fate) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.fate is fate)


class Draft:
    """A configuration that is being put together."""

    def __init__(self, kind: str, given: Given) -> None:
        self.kind = kind
        self.given = given
        self.config: dict[str, Any] = {}
        self.comments: dict[Path, Comment] = {}
        self.notes: list[Note] = []
        self._secrets: set[str] = set()
        self._names: dict[str, str] = {}
        self._settings: dict[Path, str] = {}
        self._aliases: dict[str, str] = {}

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
        if self.holds_secret(value):
            self.leave(where, setting, "it holds a secret, and secrets are never copied", f"write {key} yourself")
            return False
        note = Note(
            where, self.redact(setting), Fate.CHANGED if changed else Fate.CARRIED, self.redact(why), instead, key
        )
        earlier = self.comments.get(path)
        if earlier and earlier.where and path[-1] != "aliases":
            self.notes[:] = [one for one in self.notes if one.key != key]
            if self.get(path) == value:
                self.spare(earlier.where, earlier.setting, f"{setting} says the same")
            else:
                self.leave(earlier.where, earlier.setting, f"{setting} sets {key}, too, and counts")
        self.notes.append(note)
        self._set(path, value)
        line = f", line {where.line}" if where.line else ""
        model = self._settings.get(path[:2], "")
        short = setting.replace(f"{model}.", "") if model else setting
        said = f"{short}{line}{f': {why}' if why else ''}{f'; {instead}' if instead and changed else ''}"
        self.comments[path] = Comment(self.redact(said), where, note.setting)
        return True

    def assume(self, path: Path, value: object, why: str) -> None:
        """Set a key that nobody asked for in so many words, unless it is set."""
        if self.get(path) is None:
            self._set(path, value)
            self.comments[path] = Comment(self.redact(why))

    def leave(self, where: Where, setting: str, why: str, instead: str = "") -> None:
        """Say that something is not carried over."""
        self.notes.append(Note(where, self.redact(setting), Fate.DROPPED, self.redact(why), self.redact(instead)))

    def spare(self, where: Where, setting: str, why: str) -> None:
        """Say that gpud needs no such setting."""
        self.notes.append(Note(where, self.redact(setting), Fate.NEEDLESS, self.redact(why)))

    def get(self, path: Path) -> Any:
        found: Any = self.config
        for key in path:
            if not isinstance(found, dict) or key not in found:
                return None
            found = found[key]
        return found

    def remove(self, path: Path) -> None:
        """Take a key out, with what is below it; maps that become empty go too, but for those of models."""
        *above, last = path
        found = self.get(tuple(above)) if above else self.config
        if isinstance(found, dict):
            found.pop(last, None)
            if not found and above:
                self.remove(tuple(above))
        for known in [known for known in self.comments if known[: len(path)] == path]:
            del self.comments[known]

    def discard(self, path: Path) -> None:
        """Take a key out as if it had never been there: notes that say where something is would be lies."""
        gone = {".".join(known) for known in self.comments if known[: len(path)] == path}
        self.notes[:] = [note for note in self.notes if note.key not in gone]
        self.remove(path)

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
        mended = re.sub(r"[^A-Za-z0-9._:/@+-]+", "-", name).strip("-")[:120]
        mended = re.sub(r"^[^A-Za-z0-9]+", "", mended) or "model"
        if mended in RESERVED_NAMES:
            mended += "-model"
        free, count = mended, 1
        while free in self._names:
            count += 1
            free = f"{mended}-{count}"
        self._names[free] = name
        path = ("models", free)
        self._settings[path] = setting
        self.config.setdefault("models", {})[free] = {}
        line = f", line {where.line}" if where.line else ""
        self.comments[path] = Comment(self.redact(f"{setting}{line}"), where, self.redact(setting))
        if free != name:
            note = Note(
                where,
                self.redact(setting),
                Fate.CHANGED,
                f'its name is "{free}" now: {_why_not(name)}',
                "have its clients ask for that",
                ".".join(path),
            )
            self.notes.append(note)
            self.comments[path] = Comment(self.redact(f"{setting}{line}: {note.why}"), where, note.setting)
        return path

    def model_called(self, name: str) -> Path | None:
        """The model that was given under this name, or has it as an alias."""
        owner = next((known for known, original in self._names.items() if original == name), self._aliases.get(name))
        path = ("models", owner or "")
        return path if owner and self.get(path) is not None else None

    def alias(self, path: Path, name: str, where: Where, setting: str) -> None:
        """Give a model one more name. Each leads to one model, so that a second is not carried over."""
        owner = path[1]
        if name == owner or self._aliases.get(name) == owner:
            self.spare(where, setting, f'"{name}" is a name of that model already')
            return
        try:
            check_model_name(name)
        except Wrong as wrong:
            self.leave(where, f'{setting} "{name}"', f"it {wrong}", f"add another to {'.'.join(path)}.aliases")
            return
        if name in self._names or name in self._aliases:
            other = name if name in self._names else self._aliases[name]
            self.leave(where, f'{setting} "{name}"', f'the model "{other}" has that name', "choose another")
            return
        self._aliases[name] = owner
        known = self.get((*path, "aliases")) or []
        self.put((*path, "aliases"), [*known, name], where, setting)

    def forget_aliases_of_names(self) -> None:
        """An alias that a model got before another model of that name came is given up."""
        for name in [name for name in self._aliases if name in self._names]:
            path = ("models", self._aliases.pop(name), "aliases")
            left = [one for one in self.get(path) or [] if one != name]
            where = self.origin(path)[0]
            if left:
                self._set(path, left)
            else:
                self.remove(path)
            self.leave(where, f'{".".join(path)}: "{name}"', "a model has that name", "choose another")

    # Secrets --------------------------------------------------------------------------------------------------------

    def hide(self, value: str) -> None:
        """Never show this text, nor copy it. What is shorter than a secret can be may stand anywhere by chance."""
        if len(value) >= SHORTEST_SECRET:
            self._secrets.add(value)

    def forget_secrets(self) -> None:
        """What was put or said before it was known to be secret goes too."""
        for path, value in list(self._leaves((), self.config)):
            if self.holds_secret(value):
                where, setting = self.origin(path)
                self.discard(path)
                self.leave(where, setting, "it holds a secret, and secrets are never copied", "write it yourself")
        self.notes[:] = [
            replace(one, setting=self.redact(one.setting), why=self.redact(one.why), instead=self.redact(one.instead))
            for one in self.notes
        ]
        self.comments.update({path: replace(one, text=self.redact(one.text)) for path, one in self.comments.items()})

    def _leaves(self, path: Path, value: object) -> Iterator[tuple[Path, object]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from self._leaves((*path, key), inner)
        else:
            yield path, value

    def holds_secret(self, value: object) -> bool:
        if isinstance(value, str):
            return any(secret in value for secret in self._secrets) or bool(re.search(r"//[^/@\s:]*:[^/@\s]+@", value))
        if isinstance(value, Mapping):
            return any(self.holds_secret(one) for pair in value.items() for one in pair)
        if isinstance(value, (list, tuple)):
            return any(self.holds_secret(one) for one in value)
        return False

    def redact(self, text: str) -> str:
        """A sentence without what is secret, on one line."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "…")
        text = re.sub(r"//[^/@\s]*@", "//…@", text)
        return plain(text if len(text) <= 400 else f"{text[:399]}…")


def _why_not(name: str) -> str:
    try:
        check_model_name(name)
    except Wrong as wrong:
        return f"the old one {wrong}"
    return "another model has the old one"


def shown(text: str) -> str:
    """A value as a note quotes it: short."""
    return f'"{text if len(text) <= 60 else text[:57] + "…"}"'


_SECRET_WORD = re.compile(
    r"(?:keys?|token|secrets?|passwords?|passwd|passphrase|credentials?|webhook|apikeys?)(?![a-z])", re.IGNORECASE
)


def names_secret(name: str) -> bool:
    """Whether a variable or a flag is secret by its name. Unlike in a mask, a number of tokens is none."""
    return _SECRET_WORD.search(name) is not None
