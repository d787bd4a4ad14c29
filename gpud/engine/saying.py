"""What somebody may say of a model: its aliases, priority, tags and notes. Returns what is to be kept, or raises
InvalidOption with what is allowed.
"""

from gpud.core import naming
from gpud.core.errors import InvalidOption
from gpud.core.facts import Priority
from gpud.core.stock import Stock

ALIASES_MOST = 32
TAGS_MOST = 32
NOTES_MOST = 4000
"""What somebody may say about one model, in characters."""


def aliases(name: str, given: tuple[str, ...], models: Stock) -> tuple[str, ...]:
    """Those that ``name`` may have beside what ``models`` are called."""
    if len(given) > ALIASES_MOST:
        raise InvalidOption(
            f"{len(given)} aliases are more than a model may have, {ALIASES_MOST}", hint="take some of them back"
        )
    for alias in given:
        if naming.usable(alias) != alias or alias in naming.COMMANDS:
            raise InvalidOption(
                f'"{naming.brief(alias)}" cannot be an alias',
                hint="at most 128 of A-Z a-z 0-9 . _ : / @ + -, the first a letter or digit, and none of "
                + " ".join(sorted(naming.COMMANDS)),
            )
        owner = models.owner(alias) or name
        if owner != name or alias == name:
            raise InvalidOption(
                f'"{alias}" is what "{owner}" is called already', hint="choose another, or take it from there first"
            )
    return tuple(dict.fromkeys(given))


def priority(text: str) -> str:
    allowed = [one.name.lower() for one in Priority]
    if text and text not in allowed:
        raise InvalidOption(
            f'"{naming.brief(text)}" is no priority',
            hint=f"one of {', '.join(allowed)}, or nothing for what is configured",
        )
    return text


def tags(given: tuple[str, ...]) -> tuple[str, ...]:
    if len(given) > TAGS_MOST:
        raise InvalidOption(f"{len(given)} tags are more than a model may have, {TAGS_MOST}", hint="leave some out")
    for tag in given:
        if naming.usable(tag) != tag:
            raise InvalidOption(
                f'"{naming.brief(tag)}" cannot be a tag',
                hint="at most 128 of A-Z a-z 0-9 . _ : / @ + -, the first a letter or digit",
            )
    return tuple(dict.fromkeys(given))


def notes(text: str) -> str:
    if len(text) > NOTES_MOST:
        raise InvalidOption(
            f"notes of {len(text)} characters are longer than {NOTES_MOST}", hint="keep the rest in a file of your own"
        )
    return text
