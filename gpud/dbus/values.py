"""Values with their types, as records on the bus are made of them."""

from collections.abc import Iterable

from gpud.dbus.wire import Variant

Record = dict[str, Variant]

MAX = {"u": (1 << 32) - 1, "t": (1 << 64) - 1, "q": (1 << 16) - 1}
"""The largest number of each unsigned type."""


def number(signature: str, value: float | None) -> Variant:
    """An unsigned number, kept within what its type can hold; None is 0."""
    return Variant(signature, min(max(0, round(value or 0)), MAX[signature]))


def text(value: str) -> Variant:
    return Variant("s", value)


def truth(value: bool) -> Variant:
    return Variant("b", value)


def words(values: Iterable[str]) -> Variant:
    return Variant("as", list(values))


def records(values: list[Record]) -> Variant:
    return Variant("aa{sv}", values)
