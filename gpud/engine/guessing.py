"""What somebody may have meant who named a model that is not there. Pure."""

from collections.abc import Iterable
from itertools import islice

from gpud.core.naming import LONGEST

COMPARED_MOST = 300
"""With so many names one is compared letter by letter, which takes some milliseconds and keeps everybody waiting."""

ALIKE = 3
"""Of very many names only those are compared that begin with as many letters of it, or have all of it inside."""


def closest(name: str, known: Iterable[str]) -> str:
    """The one that is most like it; empty: none is, as of what is too long to be a name."""
    if len(name) > LONGEST:
        return ""
    names = list(known)
    if len(names) > COMPARED_MOST:
        wanted = name.casefold()
        alike = (one for one in names if one.casefold().startswith(wanted[:ALIKE]) or wanted in one.casefold())
        # The shortest first: a name with little more than what was said is what was meant.
        names = list(islice(sorted(alike, key=len), COMPARED_MOST))
    # Imported here: only who mistypes needs it.
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, names, 1, 0.5)), "")
