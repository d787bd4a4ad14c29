"""What a person has chosen for the tray: favourites, and from when on the icon warns. One small file, read at the start
and written when a favourite is chosen.
"""

import configparser
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from gpud.core.errors import GpudError
from gpud.core.record import Record, replace

SECTION = "tray"
AMBER_PERCENT = 85
RED_PERCENT = 90


class BadSettings(GpudError):
    """The file cannot be used."""

    code = "config-invalid"


KEYS = ("favourites", "amber", "red")


class Settings(Record):
    """From ``amber`` percent of the fullest GPU on the icon is amber, from ``red`` on red."""

    favourites: tuple[str, ...] = ()
    amber: int = AMBER_PERCENT
    red: int = RED_PERCENT

    def with_favourite_turned(self, model: str) -> "Settings":
        """The model is a favourite where it was none, and the other way round."""
        if model in self.favourites:
            return replace(self, favourites=tuple(name for name in self.favourites if name != model))
        return replace(self, favourites=(*self.favourites, model))


def settings_file(environment: Mapping[str, str]) -> Path:
    given = environment.get("XDG_CONFIG_HOME")
    home = Path(given) if given else Path(environment.get("HOME", "/")) / ".config"
    return home / "gpud" / "tray.conf"


def read(file: Path) -> Settings:
    """What the file says; the defaults where there is none. Raises BadSettings."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with contextlib.suppress(FileNotFoundError):
            parser.read_string(file.read_text("utf-8"), str(file))
        section = dict(parser[SECTION]) if parser.has_section(SECTION) else {}
    except (OSError, UnicodeDecodeError, configparser.Error) as problem:
        reason = getattr(problem, "strerror", None) or str(problem).replace("\n", " ")
        raise _invalid(file, f"it cannot be read: {reason}") from None
    problems = [f'"{key}" is no setting; there are {", ".join(KEYS)}' for key in section if key not in KEYS]
    percents = {"amber": AMBER_PERCENT, "red": RED_PERCENT}
    for key in percents:
        text = section.get(key, str(percents[key])).removesuffix("%").strip()
        if text.isdecimal() and 1 <= int(text) <= 100:
            percents[key] = int(text)
        else:
            problems.append(f'{key} is "{section[key]}"; it is a percentage from 1 to 100')
    if not problems and percents["amber"] > percents["red"]:
        problems.append(
            f"amber is {percents['amber']} and red {percents['red']}; amber comes first, or both are the same"
        )
    if problems:
        raise _invalid(file, "; ".join(problems))
    names = (name.strip() for name in section.get("favourites", "").replace("\n", ",").split(","))
    return Settings(tuple(dict.fromkeys(filter(None, names))), percents["amber"], percents["red"])


def write(file: Path, settings: Settings) -> None:
    """In one step, so that no other reader finds half of it. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [f"[{SECTION}]", f"favourites = {', '.join(settings.favourites)}"]
    lines += [f"amber = {settings.amber}", f"red = {settings.red}"]
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text("\n".join(lines) + "\n", "utf-8")
    fresh.replace(file)


def _invalid(file: Path, what: str) -> BadSettings:
    return BadSettings(f"cannot use {file}: {what}", hint="correct it or delete it: without it the defaults hold")
