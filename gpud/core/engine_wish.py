"""Which engines a caller wants for one load: read and checked alike on every surface. It chooses none of them."""

import re
from collections.abc import Sequence

from gpud.core.errors import InvalidOption
from gpud.core.facts import Model

MOST_ENGINES = 8
"""A model has two or three; more in one wish is a mistake."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def engines_wished(names: Sequence[str]) -> tuple[str, ...]:
    """The engines in the order in which they are to be tried, each once; none leaves the choice to gpud.

    Raises InvalidOption.
    """
    wished = tuple(dict.fromkeys(names))
    if len(wished) > MOST_ENGINES:
        raise InvalidOption(f"engines names {len(wished)} engines, the limit is {MOST_ENGINES}", hint="name fewer")
    for name in wished:
        if _NAME.fullmatch(name) is None:
            raise InvalidOption(
                f"engines has {name[:64]!a}, which is no engine's name",
                hint='an engine is named as in gpud.yaml, such as "llama_server"',
            )
    return wished


def check_served(model: Model, wished: Sequence[str]) -> None:
    """Raises InvalidOption when none of these engines serves the model."""
    known = [way.engine for way in (model, *model.alternatives)]
    if wished and not any(engine in known for engine in wished):
        raise InvalidOption(
            f'cannot load "{model.name}" with {" or ".join(wished)}: it is configured for {", ".join(known)}',
            hint="name one of these, or add the other to its engines",
        )
