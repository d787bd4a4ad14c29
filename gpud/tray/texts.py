"""The words of a program on the desktop in the language of the session: reads gettext's .po files as they are, so that
nothing has to be made of them first.
"""

import ast
import locale
import re
from collections.abc import Mapping
from importlib.resources import files

_PLURAL = re.compile(r"plural\s*=\s*(.+?)\s*;")
_POINT = re.compile(r"^X-Decimal-Point:\s*(.)\s*$", re.MULTILINE)


class Texts:
    """``gettext`` and ``ngettext`` as everywhere; ``number`` writes a number with one decimal as people there do."""

    def __init__(self, catalogue: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self._catalogue = catalogue or {}
        header = self._catalogue.get("", ("",))[0]
        point = _POINT.search(header)
        plural = _PLURAL.search(header)
        self._point = point[1] if point else "."
        # Of the languages there are, only these two rules occur: 0 is several, as in English, or it is not.
        self._one_until = 1 if plural and ">" in plural[1] else 0

    def gettext(self, text: str) -> str:
        return self._catalogue.get(text, (text,))[0] or text

    def ngettext(self, one: str, several: str, count: int) -> str:
        is_one = count == 1 or (self._one_until == 1 and count == 0)
        found = self._catalogue.get(one, (one, several))
        return found[0 if is_one or len(found) < 2 else 1] or (one if is_one else several)

    def number(self, value: float) -> str:
        return f"{value:.1f}".replace(".", self._point)

    def size(self, size_bytes: int) -> str:
        """GiB from one GiB on, else MiB."""
        if size_bytes >= 1 << 30:
            return f"{self.number(size_bytes / (1 << 30))} GiB"
        return f"{size_bytes / (1 << 20):.0f} MiB"


def languages(environment: Mapping[str, str]) -> list[str]:
    """What gettext would look for, the first choice first: ``pt_BR.UTF-8`` is also ``pt``."""
    wanted: list[str] = []
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environment.get(name):
            wanted = value.split(":") if name == "LANGUAGE" else [value]
            break
    found: list[str] = []
    for entry in wanted:
        plain = locale.normalize(entry).partition(".")[0].partition("@")[0]
        found += [plain, plain.partition("_")[0]]
    return list(dict.fromkeys(found))


def texts(environment: Mapping[str, str], program: str = "gpud.tray") -> Texts:
    """The best language that the package has in its folder ``locale``; English where it has none of the wanted."""
    folder = files(program) / "locale"
    for language in languages(environment):
        if language in ("C", "POSIX", "en"):
            break
        file = folder / f"{language}.po"
        if file.is_file():
            return Texts(parse(file.read_text("utf-8")))
    return Texts()


_LINE = re.compile(r'^(msgid|msgid_plural|msgstr|msgstr\[(\d+)\])?\s*(".*")$')


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Each text and its translations, one or one for each number. What is marked as fuzzy or empty is left out."""
    found: dict[str, tuple[str, ...]] = {}
    for block in re.split(r"\n\s*\n", text):
        fuzzy = False
        parts: dict[str, str] = {}
        field = ""
        for line in block.splitlines():
            fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
            match = _LINE.match(line.strip())
            if match:
                field = match[1] or field
                parts[field] = parts.get(field, "") + str(ast.literal_eval(match[3]))
        translations = tuple(parts[key] for key in sorted(parts) if key.startswith("msgstr"))
        if "msgid" in parts and not fuzzy and translations and all(translations):
            found[parts["msgid"]] = translations
    return found
